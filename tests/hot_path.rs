//! Counts allocations on the hot path: none for a plan that is cached, none for a frame that is walked.

use shardway::{
    catalog::{key::Key, snapshot::Snapshot},
    clock::Clock,
    gate::{
        Came, Gate,
        state::{Answer, Touch},
    },
    plan::{
        Context, Plan, Route, StatementPlan, Target,
        cache::{PlanCache, Request, Scratch},
    },
    sql::statement::{Access, Effect},
    wire::{
        backend::{Status, put_complete, put_ready},
        frame,
        frontend::{Bind, Parse, put, put_bare, put_bind, put_parse},
    },
};
use std::{
    alloc::{GlobalAlloc, Layout, System},
    cell::Cell,
    hint::black_box,
    sync::Arc,
};

struct Counting;

thread_local! {
    /// Per thread, so that tests that run side by side do not count each other's.
    static ALLOCATIONS: Cell<usize> = const { Cell::new(0) };
}

#[expect(
    unsafe_code,
    reason = "an allocator is the only place where every allocation is seen"
)]
// SAFETY: every call is handed on unchanged to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.with(|count| count.set(count.get() + 1));
        // SAFETY: the caller's promise is the system allocator's.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise is the system allocator's.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        ALLOCATIONS.with(|count| count.set(count.get() + 1));
        // SAFETY: the caller's promise is the system allocator's.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn allocations(act: impl FnOnce()) -> usize {
    let before = ALLOCATIONS.with(Cell::get);
    act();
    ALLOCATIONS.with(Cell::get) - before
}

#[test]
fn the_allocator_counts() {
    assert_eq!(allocations(|| drop(black_box(Box::new(1)))), 1);
}

#[test]
fn a_cached_plan_costs_no_allocation() {
    let context = Context::default();
    let snapshot = snapshot();
    let cache = PlanCache::new(16 << 20, 1);
    let mut scratch = Scratch::default();
    let mut ask = |text: &str, types: &[u32]| {
        let request = Request {
            text: text.as_bytes(),
            types,
            context: &context,
            snapshot: &snapshot,
        };
        let mut missed = false;
        let count = allocations(|| {
            let planned = cache.plan_with(&request, &mut scratch, |_| {
                missed = true;
                plan()
            });
            drop(black_box(planned));
        });
        (missed, count)
    };
    // By the text itself, as prepared and parameterised statements are found.
    let text = "SELECT id, name FROM customers WHERE id = $1 AND region = $2";
    assert!(ask(text, &[20, 25]).0);
    assert_eq!(ask(text, &[20, 25]), (false, 0));
    // By the template, as statements with literals are found.
    assert!(
        ask(
            "SELECT name FROM customers WHERE id = 1 AND region = 'north'",
            &[]
        )
        .0
    );
    for id in 1000..2000 {
        let text = format!("SELECT name FROM customers WHERE id = {id} AND region = 'south''s'");
        assert_eq!(ask(&text, &[]), (false, 0), "{text}");
    }
    // More than eight literals: their places do not fit beside the plan.
    let insert = |id: usize| format!("INSERT INTO t VALUES ({id}, 2, 3, 4, 5, 6, 7, 8, 9, 10)");
    assert!(ask(&insert(1), &[]).0);
    assert_eq!(ask(&insert(2), &[]), (false, 1));
}

#[test]
fn a_gate_before_which_nobody_waits_costs_no_allocation() {
    let gate = Arc::new(Gate::default());
    let ticket = gate.enter(1);
    let now = Clock.now();
    let count = allocations(|| {
        for _ in 0..100 {
            assert_eq!(black_box(ticket.comes(now, 0, || 0)), Came::Quiet);
            ticket.ends();
        }
    });
    assert_eq!(count, 0);
}

#[test]
fn a_gate_costs_no_allocation_while_keys_of_others_move() {
    let gate = Arc::new(Gate::default());
    gate.watch(["others"]);
    let mut ticket = gate.enter(1);
    let now = Clock.now();
    let mut pass = || {
        let came = ticket.comes(now, 0, || 0);
        assert_eq!(came, Came::First);
        let mut asked = ticket.lend();
        asked.add(
            "customers",
            &Touch::Keys([Key::Bigint(1)].into_iter().collect()),
        );
        assert_eq!(black_box(ticket.asks(came, &asked)), Answer::Passes);
        ticket.restore(asked);
        ticket.ends();
    };
    // Its room is made by the first.
    pass();
    assert_eq!(allocations(|| (0..100).for_each(|_| pass())), 0);
}

#[test]
fn a_walked_frame_costs_no_allocation() {
    let mut client = Vec::new();
    for _ in 0..100 {
        put_parse(
            &mut client,
            b"s1",
            b"SELECT name FROM customers WHERE id = $1",
            &20_u32.to_be_bytes(),
        );
        put_bind(
            &mut client,
            b"",
            b"s1",
            b"\0\x01\0\x01\0\x01\0\0\0\x08\0\0\0\0\0\0\0\x2a\0\0",
        );
        put_bare(&mut client, b'S');
    }
    let mut frames = 0;
    let count = allocations(|| {
        let mut rest = client.as_slice();
        while let Ok(Some(header)) = frame::frontend(rest) {
            let (whole, next) = rest.split_at(header.size);
            match header.tag {
                b'P' => drop(black_box(Parse::decode(&whole[frame::HEADER..]))),
                b'B' => drop(black_box(
                    Bind::decode(&whole[frame::HEADER..]).map(|bind| bind.parameter(0)),
                )),
                _ => {}
            }
            frames += 1;
            rest = next;
        }
    });
    assert_eq!((frames, count), (300, 0));
}

#[test]
fn a_walked_row_costs_no_allocation() {
    let mut server = Vec::new();
    for _ in 0..1000 {
        put(&mut server, b'D', |out| {
            out.extend_from_slice(b"\0\x02\0\0\0\x0242\0\0\0\x05north");
        });
    }
    put_complete(&mut server, b"SELECT 1000");
    put_ready(&mut server, Status::Idle);
    let mut rows = 0;
    let count = allocations(|| {
        let mut rest = server.as_slice();
        while let Ok(Some(header)) = frame::backend(rest) {
            rows += usize::from(header.tag == b'D');
            rest = &rest[header.size..];
        }
    });
    assert_eq!((rows, count), (1000, 0));
}

fn plan() -> Plan {
    let target = Target::Fixed(Route::Any);
    Plan {
        statements: vec![StatementPlan::new(0..0, Effect::None, Access::Read, target)],
        structural: Vec::new(),
    }
}

fn snapshot() -> Snapshot {
    Snapshot::new("shop", vec!["s0".to_owned()])
}
