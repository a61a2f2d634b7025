//! Makes cargo link the guests anew when their linker script changes.
fn main() {
    println!("cargo::rerun-if-changed=guest.ld");
}
