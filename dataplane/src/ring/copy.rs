//! Moving bytes between guest memory and ours, and telling the caches what comes next.

use crate::SHORT;

// The widest arm of `copy_short` moves so many bytes from either end.
const _: () = assert!(SHORT <= 2 * 64);

/// Copies `len` bytes. Short frames are moved by a few fixed-size loads and stores, of which the last ones overlap.
///
/// # Safety
///
/// `src` is valid for reads and `dst` for writes of `len` bytes, and they do not overlap.
#[inline(always)]
pub(super) unsafe fn copy(src: *const u8, dst: *mut u8, len: usize) {
    // SAFETY: the caller's.
    unsafe {
        if len > SHORT {
            std::ptr::copy_nonoverlapping(src, dst, len);
        } else {
            copy_short(src, dst, len);
        }
    }
}

/// The same, [`SHORT`] bytes at most, and without a call.
///
/// # Safety
///
/// As [`copy`].
#[inline(always)]
pub(super) unsafe fn copy_short(src: *const u8, dst: *mut u8, len: usize) {
    debug_assert!(len <= SHORT);
    // SAFETY: each arm stays inside `len`, by its condition.
    unsafe {
        if len > 64 {
            ends::<64>(src, dst, len);
        } else if len > 32 {
            ends::<32>(src, dst, len);
        } else if len >= 16 {
            ends::<16>(src, dst, len);
        } else {
            tail(src, dst, len);
        }
    }
}

/// Copies the first and the last `N` bytes; with `N <= len <= 2 N` that is all.
#[inline(always)]
unsafe fn ends<const N: usize>(src: *const u8, dst: *mut u8, len: usize) {
    // SAFETY: the caller's; `len` is at least N, and source and destination do not overlap.
    unsafe {
        std::ptr::copy_nonoverlapping(src, dst, N);
        std::ptr::copy_nonoverlapping(src.add(len - N), dst.add(len - N), N);
    }
}

/// Fewer than 16 bytes.
#[inline]
unsafe fn tail(src: *const u8, dst: *mut u8, len: usize) {
    // SAFETY: the caller's.
    unsafe {
        match len {
            8..16 => ends::<8>(src, dst, len),
            4..8 => ends::<4>(src, dst, len),
            _ => {
                for i in 0..len {
                    dst.add(i).write(src.add(i).read());
                }
            }
        }
    }
}

/// An unaligned value, so that a volatile access may be unaligned too.
#[derive(Clone, Copy)]
#[repr(C, packed)]
struct Unaligned<T>(T);

/// One volatile load that needs no alignment.
///
/// # Safety
///
/// `src` is valid for reads of a `T`, for which any bits are a value.
#[inline(always)]
pub(super) unsafe fn read<T: Copy>(src: *const u8) -> T {
    // SAFETY: the caller's; the packed type is aligned anywhere.
    unsafe { src.cast::<Unaligned<T>>().read_volatile().0 }
}

/// Copies `len` bytes of guest memory, each read once: for what is checked afterwards.
///
/// # Safety
///
/// As [`copy`].
#[inline(always)]
pub(super) unsafe fn copy_volatile(src: *const u8, dst: *mut u8, len: usize) {
    for i in 0..len {
        // SAFETY: inside `len`.
        unsafe { dst.add(i).write(src.add(i).read_volatile()) };
    }
}

/// Asks for the cache line at `at`, to read it. A hint: any address is fine.
#[inline(always)]
pub(super) fn prefetch<T>(at: *const T) {
    prefetch_into::<false, T>(at);
}

/// Asks for the cache line at `at`, to read it later: it goes to a cache farther than the nearest (PREFETCHT2; which one depends on the processor), which holds less
/// than a burst of long frames and is left to those that are copied now. A hint: any address is fine.
#[inline(always)]
pub(super) fn prefetch_far<T>(at: *const T) {
    prefetch_into::<true, T>(at);
}

#[inline(always)]
fn prefetch_into<const FAR: bool, T>(at: *const T) {
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    // SAFETY: prefetching never faults.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T0, _MM_HINT_T2, _mm_prefetch};
        if FAR { _mm_prefetch::<_MM_HINT_T2>(at.cast()) } else { _mm_prefetch::<_MM_HINT_T0>(at.cast()) }
    }
    #[cfg(not(all(target_arch = "x86_64", not(miri))))]
    let _ = at;
}

/// Asks for the cache line at `at`, to write it: the guest's core gives it up early. A hint: any address is fine.
#[inline(always)]
pub(super) fn prefetch_write<T>(at: *const T) {
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    // SAFETY: prefetching never faults. PREFETCHW does nothing on the few processors that lack it.
    unsafe {
        std::arch::asm!("prefetchw [{}]", in(reg) at, options(nostack, preserves_flags, readonly));
    }
    #[cfg(not(all(target_arch = "x86_64", not(miri))))]
    let _ = at;
}

/// Asks for the first two cache lines of a buffer: the virtio-net header and the start of the frame.
#[inline(always)]
pub(super) fn prefetch_buffer<const WRITE: bool>(at: *const u8) {
    const LINE: usize = 64;
    let second = at.wrapping_add(LINE);
    if WRITE {
        prefetch_write(at);
        prefetch_write(second);
    } else {
        prefetch(at);
        prefetch(second);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copies_exactly_what_it_is_asked_to() {
        let src: Vec<u8> = (0..300u16).map(|i| i as u8 ^ 0x5a).collect();
        for len in 0..=src.len() {
            let mut dst = vec![0xee; len + 32];
            // SAFETY: both are long enough and distinct.
            unsafe { copy(src.as_ptr(), dst[16..].as_mut_ptr(), len) };
            assert_eq!(&dst[16..16 + len], &src[..len], "{len} bytes");
            assert!(dst[..16].iter().chain(&dst[16 + len..]).all(|&byte| byte == 0xee), "{len} bytes: overrun");
        }
    }
}
