//! What the processor is told about memory.

/// Bytes that come into its cache together.
const LINE_BYTES: usize = 64;

/// Asks the processor for these bytes: they are on their way while something else is done.
#[inline]
pub(crate) fn prefetch(bytes: &[u8]) {
    #[cfg(target_arch = "x86_64")]
    for line in bytes.chunks(LINE_BYTES) {
        // SAFETY: a prefetch of an address inside the slice; it cannot fault or change anything.
        unsafe {
            std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T0 }>(line.as_ptr().cast());
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = bytes;
}
