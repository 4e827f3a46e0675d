//! Randomness for keys, nonces, secrets and serial numbers, from the crypto provider.

/// Fills `bytes` from the operating system's generator.
pub(crate) fn fill(bytes: &mut [u8]) {
    // The kernel's generator cannot fail once it is seeded, which it is before any daemon starts; without it no secret
    // could be made, so that there is nothing to go on with.
    aws_lc_rs::rand::fill(bytes).expect("the operating system's random generator");
}
