//! `strongroom client …`: the appliance seen from the other side.
