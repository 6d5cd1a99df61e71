//! Giving freed memory back to the system once a model is gone.
//!
//! glibc keeps what is freed for later: after a model of 90 MB was dropped, 100 MB stayed resident in its heaps (measured on
//! all-MiniLM-L6-v2), because every large block that is freed raises the size from which blocks are returned at once.
//! Other allocators return pages by themselves.

#![allow(unsafe_code)]

/// A block that glibc takes from a thread's heap as soon as larger ones have been freed.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
const BLOCK_BYTES: usize = 1 << 20;

/// Such blocks that fill the largest heap of a thread, `HEAP_MAX_SIZE`, 64 MB.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
const BLOCKS: usize = 63;

/// Asks the allocator to return what is free. Takes some milliseconds; meant for the moment when a model goes, on the thread
/// that loaded it.
pub(crate) fn return_free_memory() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        shrink_own_heap();
        rayon::broadcast(|_| shrink_own_heap());
        // SAFETY: the signature is that of glibc's <malloc.h>, `int malloc_trim(size_t)`. It takes no pointer, is documented as
        // safe to call from any thread, and only releases pages that hold no block in use; where another allocator serves
        // the process it finds nothing to release.
        unsafe extern "C" {
            safe fn malloc_trim(pad: usize) -> std::ffi::c_int;
        }
        // The answer says whether anything was released; nothing depends on it.
        let _ = malloc_trim(0);
    }
}

/// Returns the end of this thread's heap, which is out of `malloc_trim`'s reach.
///
/// A `free` returns it that makes it larger than a threshold, at most 64 MB. Memory that is never touched makes it so, and
/// costs nothing.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
fn shrink_own_heap() {
    let blocks: Vec<Vec<u8>> = (0..BLOCKS).map(|_| std::hint::black_box(Vec::with_capacity(BLOCK_BYTES))).collect();
    drop(blocks);
}
