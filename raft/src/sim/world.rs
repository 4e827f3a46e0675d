//! One simulated world a thread: its chance, its clock, its trace, and the machines in it.
//!
//! Invariant: everything random is drawn from one generator, in the order in which tasks run, and tasks run on one
//! thread: the seed decides everything.
//! Invariant: a machine that is down runs nothing, and one that is paused runs nothing until it goes on.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fmt::Display;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use tokio::time::Instant;

use crate::types::NodeId;

use super::invariants::Invariants;

/// More polls at one moment than any sound program needs.
const MAX_POLLS_A_MOMENT: u64 = 1_000_000;
/// One in so many polls is put off, so that tasks run in other orders.
const PUT_OFF_ONE_IN: u64 = 12;
/// The simulated wall clock begins here, in milliseconds since 1970.
const EPOCH_MS: i64 = 1_700_000_000_000;

thread_local! {
    static WORLD: RefCell<Option<Arc<World>>> = const { RefCell::new(None) };
    static HOST: RefCell<Option<Arc<Host>>> = const { RefCell::new(None) };
}

/// The simulation that this thread runs, if any.
pub(super) fn world() -> Arc<World> {
    WORLD.with_borrow(Clone::clone).expect("this thread simulates")
}

/// The machine whose task is running, if any.
pub(crate) fn host() -> Option<Arc<Host>> {
    HOST.with_borrow(Clone::clone)
}

pub(super) struct World {
    start: Instant,
    chance: Mutex<u64>,
    trace: Mutex<Trace>,
    /// Polls since the clock last moved, and where it stood.
    polls: Mutex<(u64, Duration)>,
    violations: Mutex<Vec<String>>,
    pub invariants: Mutex<Invariants>,
}

struct Trace {
    hash: u64,
    aloud: bool,
}

impl World {
    /// Makes the world of this thread, in place of the one before.
    pub fn begin(seed: u64) -> Arc<Self> {
        let world = Arc::new(Self {
            start: Instant::now(),
            chance: Mutex::new(seed),
            trace: Mutex::new(Trace { hash: seed, aloud: std::env::var_os("SIM_TRACE").is_some() }),
            polls: Mutex::default(),
            violations: Mutex::default(),
            invariants: Mutex::default(),
        });
        WORLD.set(Some(world.clone()));
        world
    }

    pub fn now(&self) -> Duration {
        Instant::now() - self.start
    }

    pub fn random(&self) -> u64 {
        // SplitMix64, so that no update of a crate changes what a seed does.
        let mut state = self.chance.lock().unwrap();
        *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (*state ^ (*state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number in `from..to`.
    pub fn between(&self, from: u64, to: u64) -> u64 {
        from + self.random() % (to - from).max(1)
    }

    pub fn one_in(&self, n: u64) -> bool {
        self.random().is_multiple_of(n)
    }

    pub fn pick<T: Clone>(&self, from: &[T]) -> Option<T> {
        match from {
            [] => None,
            some => Some(some[self.between(0, some.len() as u64) as usize].clone()),
        }
    }

    /// A time between two, in milliseconds.
    pub fn ms(&self, from: u64, to: u64) -> Duration {
        Duration::from_millis(self.between(from, to))
    }

    /// Takes an event into the trace.
    pub fn note(&self, node: NodeId, what: impl Display) {
        let now = self.now();
        let line = format!("{:>9} {node} {what}", now.as_millis());
        let mut trace = self.trace.lock().unwrap();
        for byte in line.bytes() {
            trace.hash = (trace.hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
        if trace.aloud {
            eprintln!("{line}");
        }
    }

    /// Everything that happened and every number drawn, as one number.
    pub fn trace_hash(&self) -> u64 {
        self.trace.lock().unwrap().hash ^ *self.chance.lock().unwrap()
    }

    pub fn violation(&self, what: impl Display) {
        self.note(0, format_args!("VIOLATION {what}"));
        self.violations.lock().unwrap().push(format!("at {:?}: {what}", self.now()));
    }

    pub fn violations(&self) -> Vec<String> {
        self.violations.lock().unwrap().clone()
    }

    /// Counts a poll; a world that does not move any more ends here.
    fn polled(&self) {
        let now = self.now();
        let mut polls = self.polls.lock().unwrap();
        match polls.1 == now {
            true => polls.0 += 1,
            false => *polls = (0, now),
        }
        assert!(polls.0 < MAX_POLLS_A_MOMENT, "a livelock at {now:?}");
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Power {
    On,
    Paused,
    Off,
}

/// A machine, from one start to the next crash.
pub(crate) struct Host {
    pub id: NodeId,
    power: Mutex<Power>,
    /// Who polls its tasks.
    wakers: Mutex<BTreeMap<u64, Waker>>,
    next_task: AtomicU64,
    /// What its wall clock is ahead, in milliseconds.
    ahead_ms: AtomicI64,
    /// How fast its monotonic clock runs, in millionths.
    rate_ppm: u64,
    /// How long its slow calls take at most, in milliseconds.
    slow_ms: AtomicU64,
}

impl Host {
    pub fn start(id: NodeId, rate_ppm: u64, ahead_ms: i64) -> Arc<Self> {
        Arc::new(Self {
            id,
            power: Mutex::new(Power::On),
            wakers: Mutex::default(),
            next_task: AtomicU64::new(0),
            ahead_ms: AtomicI64::new(ahead_ms),
            rate_ppm,
            slow_ms: AtomicU64::new(2),
        })
    }

    fn power(&self) -> Power {
        *self.power.lock().unwrap()
    }

    pub fn is_on(&self) -> bool {
        self.power() == Power::On
    }

    pub fn is_off(&self) -> bool {
        self.power() == Power::Off
    }

    pub fn pause(&self) {
        let mut power = self.power.lock().unwrap();
        if *power == Power::On {
            *power = Power::Paused;
        }
    }

    pub fn go_on(&self) {
        let mut power = self.power.lock().unwrap();
        if *power == Power::Paused {
            *power = Power::On;
            drop(power);
            self.wake();
        }
    }

    /// Ends every task where it stands.
    pub fn crash(&self) {
        *self.power.lock().unwrap() = Power::Off;
        self.wake();
    }

    fn wake(&self) {
        let wakers: Vec<Waker> = self.wakers.lock().unwrap().values().cloned().collect();
        wakers.iter().for_each(Waker::wake_by_ref);
    }

    /// Its monotonic clock.
    pub fn elapsed(&self) -> Duration {
        world().now().mul_f64(self.rate_ppm as f64 / 1e6)
    }

    /// How long the world's clock takes for what takes `local` on this machine's.
    pub fn stretch(&self, local: Duration) -> Duration {
        local.mul_f64(1e6 / self.rate_ppm as f64)
    }

    pub fn wall_ms(&self) -> u64 {
        let now_ms = EPOCH_MS + world().now().as_millis() as i64 + self.ahead_ms.load(Ordering::Relaxed);
        now_ms.max(0) as u64
    }

    pub fn jump_wall(&self, by_ms: i64) {
        self.ahead_ms.fetch_add(by_ms, Ordering::Relaxed);
    }

    pub fn ahead_ms(&self) -> i64 {
        self.ahead_ms.load(Ordering::Relaxed)
    }

    pub fn set_slow(&self, at_most_ms: u64) {
        self.slow_ms.store(at_most_ms, Ordering::Relaxed);
    }

    /// A moment that a slow call takes.
    pub async fn slow(&self) {
        let world = world();
        let at_most_ms = self.slow_ms.load(Ordering::Relaxed);
        match at_most_ms {
            0..=2 if !world.one_in(4) => tokio::task::yield_now().await,
            _ => tokio::time::sleep(world.ms(0, at_most_ms + 1)).await,
        }
    }

    /// A task of this machine.
    pub fn task<F: Future>(self: &Arc<Self>, future: F) -> Task<F> {
        let key = self.next_task.fetch_add(1, Ordering::Relaxed);
        Task { host: self.clone(), key, future: Some(Box::pin(future)), put_off: false }
    }
}

/// A future that runs while its machine does, as that machine.
pub(crate) struct Task<F> {
    host: Arc<Host>,
    key: u64,
    future: Option<Pin<Box<F>>>,
    put_off: bool,
}

impl<F> Task<F> {
    /// Runs `work` as the task's machine.
    fn as_host<T>(&mut self, work: impl FnOnce(&mut Option<Pin<Box<F>>>) -> T) -> T {
        let before = HOST.replace(Some(self.host.clone()));
        let done = work(&mut self.future);
        HOST.set(before);
        done
    }

    fn end(&mut self) {
        self.host.wakers.lock().unwrap().remove(&self.key);
        self.as_host(|future| *future = None);
    }
}

impl<F: Future> Future for Task<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<F::Output> {
        let this = &mut *self;
        let world = world();
        world.polled();
        match this.host.power() {
            Power::Off => {
                this.end();
                return Poll::Pending;
            }
            Power::Paused => {
                this.host.wakers.lock().unwrap().insert(this.key, context.waker().clone());
                return Poll::Pending;
            }
            Power::On => {}
        }
        this.host.wakers.lock().unwrap().insert(this.key, context.waker().clone());
        this.put_off = !this.put_off && world.one_in(PUT_OFF_ONE_IN);
        if this.put_off {
            context.waker().wake_by_ref();
            return Poll::Pending;
        }
        let polled = this.as_host(|future| {
            let future = future.as_mut().expect("a task that has not ended");
            catch_unwind(AssertUnwindSafe(|| future.as_mut().poll(context)))
        });
        match polled {
            Ok(Poll::Pending) => Poll::Pending,
            Ok(Poll::Ready(output)) => {
                this.end();
                Poll::Ready(output)
            }
            Err(panic) => {
                let said = panic.downcast_ref::<String>().map(String::as_str);
                let said = said.or_else(|| panic.downcast_ref::<&str>().copied());
                world.violation(format_args!("node {} panicked: {}", this.host.id, said.unwrap_or("?")));
                this.end();
                Poll::Pending
            }
        }
    }
}

impl<F> Drop for Task<F> {
    fn drop(&mut self) {
        if self.future.is_some() {
            self.end();
        }
    }
}
