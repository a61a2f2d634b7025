//! Cargo does not know that the linker reads `guest.ld`.

fn main() {
    println!("cargo:rerun-if-changed=../guest/guest.ld");
}
