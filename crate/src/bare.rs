//! What a WebAssembly module without the standard library must bring: kernels neither allocate nor explain.

use core::alloc::{GlobalAlloc, Layout};
use core::panic::PanicInfo;

/// A trap; TypeScript names the kernel.
#[panic_handler]
fn panic(_: &PanicInfo) -> ! {
    core::arch::wasm32::unreachable()
}

/// No heap: wasm-bindgen asks for one, and nothing calls it.
struct NoHeap;

// SAFETY: null is what an allocator without memory returns.
unsafe impl GlobalAlloc for NoHeap {
    unsafe fn alloc(&self, _: Layout) -> *mut u8 {
        core::ptr::null_mut()
    }

    unsafe fn dealloc(&self, _: *mut u8, _: Layout) {}
}

#[global_allocator]
static HEAP: NoHeap = NoHeap;
