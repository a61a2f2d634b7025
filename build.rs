//! Makes cargo link the kernel anew when its linker script changes.
fn main() {
    println!("cargo::rerun-if-changed=linker.ld");
}
