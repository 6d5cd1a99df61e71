//! A safetensors file, and the memory that it takes.
#![no_main]

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

/// Counts what is allocated, and the most that ever was at once.
struct Counting;

static NOW: AtomicUsize = AtomicUsize::new(0);
static MOST: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call is handed to the system's allocator as it came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let now = NOW.fetch_add(layout.size(), Ordering::Relaxed) + layout.size();
        MOST.fetch_max(now, Ordering::Relaxed);
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        NOW.fetch_sub(layout.size(), Ordering::Relaxed);
        unsafe { System.dealloc(memory, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Beyond what grows with the file: its path, what the reader is made of, an error.
const ALLOWANCE: usize = 32 << 10;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let before = NOW.load(Ordering::Relaxed);
    MOST.store(before, Ordering::Relaxed);
    // The promise, for files too small to have a limit of their own: eight times the header.
    embank::fuzzing::safetensors(data);
    let most = MOST.load(Ordering::Relaxed) - before;
    assert!(most <= data.len() * 8 + ALLOWANCE, "{most} bytes of memory for a file of {}", data.len());
});
