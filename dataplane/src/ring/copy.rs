//! Moving bytes between guest memory and ours, and telling the caches what comes next.

const LINE: usize = 64;
/// Longest frame that is copied without a loop.
pub(super) const SHORT: usize = 128;
/// Longest buffer that is asked for, beyond its first lines, before its turn comes.
pub(super) const LONG: usize = 2048;
/// Bytes of a long frame that are on their way while others are copied: about as many lines as a core may wait for at once.
const AHEAD: usize = 16 * LINE;

/// Copies `len` bytes, to guest memory with `WRITE`, else from there. Short frames are moved by a few fixed-size loads and stores, of which the last ones overlap.
///
/// # Safety
///
/// `src` is valid for reads and `dst` for writes of `len` bytes, and they do not overlap.
#[inline(always)]
pub(super) unsafe fn copy<const WRITE: bool>(src: *const u8, dst: *mut u8, len: usize) {
    // SAFETY: each arm stays inside `len`, by its condition.
    unsafe {
        if len > SHORT {
            long::<WRITE>(src, dst, len);
        } else if len > 64 {
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

/// Copies more than [`SHORT`] bytes. Not by the C library: it chooses `rep movsb` for large frames, which on some processors is slow
/// where source and destination have about the same place in their pages (glibc bug 30994), and asks for no line ahead, while one
/// side of each copy here was last touched by the guest's core.
///
/// # Safety
///
/// As [`copy`].
#[inline(never)]
unsafe fn long<const WRITE: bool>(src: *const u8, dst: *mut u8, len: usize) {
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    // SAFETY: the caller's; and the processor has AVX2, or it is not asked for.
    unsafe {
        if std::is_x86_feature_detected!("avx2") {
            long_avx2::<WRITE>(src, dst, len);
        } else {
            lines::<WRITE>(src, dst, len);
        }
    }
    #[cfg(not(all(target_arch = "x86_64", not(miri))))]
    // SAFETY: the caller's.
    unsafe {
        std::ptr::copy_nonoverlapping(src, dst, len);
    }
}

/// [`lines`] with registers of 32 bytes.
///
/// # Safety
///
/// As [`long`]; the processor has AVX2.
#[cfg(all(target_arch = "x86_64", not(miri)))]
#[target_feature(enable = "avx2")]
unsafe fn long_avx2<const WRITE: bool>(src: *const u8, dst: *mut u8, len: usize) {
    // SAFETY: the caller's.
    unsafe { lines::<WRITE>(src, dst, len) };
}

/// Copies `len` bytes, more than two lines: by the line, written where lines begin, with the guest's side asked for ahead.
///
/// # Safety
///
/// As [`copy`].
#[cfg(all(target_arch = "x86_64", not(miri)))]
#[inline(always)]
unsafe fn lines<const WRITE: bool>(src: *const u8, dst: *mut u8, len: usize) {
    // SAFETY: all offsets are at most `len - LINE`; what is asked for may be anywhere.
    unsafe {
        std::ptr::copy_nonoverlapping(src, dst, LINE);
        // From here on each store fills one line of the destination.
        let mut at = LINE - (dst.addr() & (LINE - 1));
        while at + AHEAD < len {
            if WRITE {
                prefetch_write(dst.add(at + AHEAD))
            } else {
                prefetch(src.add(at + AHEAD))
            }
            std::ptr::copy_nonoverlapping(src.add(at), dst.add(at), LINE);
            at += LINE;
        }
        while at + LINE < len {
            std::ptr::copy_nonoverlapping(src.add(at), dst.add(at), LINE);
            at += LINE;
        }
        std::ptr::copy_nonoverlapping(src.add(len - LINE), dst.add(len - LINE), LINE);
    }
}

/// Asks for what of a long buffer of `len` bytes [`prefetch_buffer`] does not: as much as [`copy`] expects to be on its way when it begins.
#[inline(never)]
pub(super) fn prefetch_long<const WRITE: bool>(at: *const u8, len: usize) {
    for offset in (2 * LINE..len.min(AHEAD)).step_by(LINE) {
        if WRITE { prefetch_write(at.wrapping_add(offset)) } else { prefetch(at.wrapping_add(offset)) }
    }
}

/// What was written before is seen by the guest before what comes is read (VIRTIO 1.2 sections 2.7.7.2 and 2.8.21.3). Once a burst.
#[inline(always)]
pub(super) fn full_fence() {
    // SAFETY: a locked addition of nothing to the top of the stack, as Linux's `smp_mb()`: it orders as MFENCE does, which takes longer on
    // most processors.
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    unsafe {
        std::arch::asm!("lock add dword ptr [rsp], 0");
    }
    #[cfg(not(all(target_arch = "x86_64", not(miri))))]
    std::sync::atomic::fence(std::sync::atomic::Ordering::SeqCst);
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
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    // SAFETY: prefetching never faults.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T0>(at.cast());
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
        let src: Vec<u8> = (0..10_000u16).map(|i| (i % 251) as u8 ^ 0x5a).collect();
        let (few, many) = if cfg!(miri) { (140, 0) } else { (700, 9) };
        // Wherever the destination begins in its line.
        for (len, before) in (0..=few).map(|len| (len, len % 67)).chain((0..many).map(|i| (1500 + i * 937, 64 - 7 * i)))
        {
            let mut dst = vec![0xee; len + before + 32];
            // SAFETY: both are long enough and distinct.
            unsafe { copy::<false>(src.as_ptr(), dst[before..].as_mut_ptr(), len) };
            assert_eq!(&dst[before..before + len], &src[..len], "{len} bytes");
            let beside = dst[..before].iter().chain(&dst[before + len..]);
            assert!(beside.copied().all(|byte| byte == 0xee), "{len} bytes: overrun");
        }
    }
}
