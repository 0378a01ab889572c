//! What an attacker would like to see run: it says so on the console. Built by `doors.rs`, with and without a C library of its own.

fn main() {
    loop {
        println!("\nTHE ATTACKER'S CODE RUNS");
        std::thread::sleep(std::time::Duration::from_secs(1));
    }
}
