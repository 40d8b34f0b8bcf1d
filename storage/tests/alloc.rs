//! Appending, submitting and polling allocate nothing after warm-up.
#![allow(unsafe_code)] // Reason: a counting allocator is an unsafe trait.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use storage::disk::SimDisk;
use storage::{Backend, Frame, FrameKind, Log, LogConfig, Notify, Settings, chain_next};

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

struct Counting;

// SAFETY: every call goes on to the system allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.set(ALLOCATIONS.get() + 1);
        // SAFETY: the caller's promise about `layout` is passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise about both is passed on.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn settings() -> Settings {
    LogConfig::new("unused", 1, 0).settings()
}

struct Chain {
    value: [u8; 32],
    index: u64,
}

impl Chain {
    fn next<'a>(&mut self, payload: &'a [u8]) -> Frame<'a> {
        self.index += 1;
        self.value = chain_next(&self.value, payload);
        let (index, chain) = (self.index, self.value);
        Frame { kind: FrameKind::Block, shard: 11, term: 1, index, chain, payload }
    }
}

#[test]
fn no_allocation_per_append() {
    let disk = SimDisk::new(1, 64 << 20);
    let (mut log, _) = Log::with_disk(disk, settings(), &mut |_| Ok(())).unwrap();
    let mut chain = Chain { value: [0; 32], index: 0 };
    let payload = [3; 256];
    let mut round = |log: &mut Log<SimDisk>| {
        for _ in 0..200 {
            log.append(&chain.next(&payload)).unwrap();
        }
        assert!(log.submit().unwrap());
        while log.poll().unwrap().is_none() {}
    };
    round(&mut log);
    let before = ALLOCATIONS.get();
    for _ in 0..100 {
        round(&mut log);
    }
    assert_eq!(ALLOCATIONS.get() - before, 0, "in 20,000 appends");
}

#[test]
fn no_allocation_on_the_worker_with_real_disks() {
    for backend in [Backend::Blocking, Backend::Uring] {
        let dir = tempfile::tempdir().unwrap();
        let config = LogConfig { backend, reserve_bytes: 0, ..LogConfig::new(dir.path(), 1, 0) };
        let notify = Notify::new().unwrap();
        let (mut log, _) = Log::open(config, notify.clone(), &mut |_| Ok(())).unwrap();
        let mut chain = Chain { value: [0; 32], index: 0 };
        let payload = [3; 256];
        let mut round = |log: &mut Log| {
            for _ in 0..100 {
                log.append(&chain.next(&payload)).unwrap();
            }
            assert!(log.submit().unwrap());
            while log.poll().unwrap().is_none() {
                notify.wait(1_000_000);
            }
        };
        for _ in 0..5 {
            round(&mut log);
        }
        let before = ALLOCATIONS.get();
        for _ in 0..50 {
            round(&mut log);
        }
        assert_eq!(ALLOCATIONS.get() - before, 0, "{backend:?}, in 5,000 appends");
    }
}
