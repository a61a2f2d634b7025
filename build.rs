//! Cargo does not know that the linker reads `linker.ld`.

fn main() {
    println!("cargo:rerun-if-changed=linker.ld");
}
