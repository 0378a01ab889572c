//! A throwaway SoftHSM2 token for tests and the demo.
