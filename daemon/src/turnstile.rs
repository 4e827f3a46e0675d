//! How many requests are answered at once, and whose: users share seats fairly, and what the cluster lives by has seats of
//! its own.
//!
//! Decided by [`flotilla_control::fair`]; here requests wait for their turn. A request takes a seat before anything of its
//! body is read, and gives it back when its answer begins. What is sent while it is read, a long list or what a watch begins
//! with, keeps the seat until it is read, for a bounded time. What then goes on for long, such as a watch, is counted apart;
//! so is a session, which goes on after HTTP has ended.
//!
//! Invariant: a seat comes back however its request ends, and so does a place in the queue.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use flotilla_api::{Reason, Status};
use flotilla_control::fair::{Arrival, Bounds, Fair, Ticket};
use tokio::sync::oneshot;

use crate::gate::User;

/// Requests under way: of those who may do everything, of nodes, and of all others. Each of the three has so many.
const SEATS: usize = 256;
/// Requests of one user under way; nodes and those who may do everything are not bounded one by one.
const SEATS_PER_USER: usize = 32;
/// Requests of one user that wait.
const QUEUE_PER_USER: usize = 128;
/// Requests of each of the three that wait.
const QUEUE: usize = 4_096;
/// The longest wait for a seat.
const MAX_WAIT: Duration = Duration::from_secs(15);
/// Answers to one user that go on: watches, followed logs, sessions.
const LONG_PER_USER: usize = 1_024;
/// The same of each of the three.
const LONG: usize = 16_384;
/// Sessions of one user: commands, attaching, forwarded ports, proxied upgrades.
const SESSIONS_PER_USER: usize = 256;
/// The same of each of the three.
const SESSIONS: usize = 1_024;
/// Streams on which a node without a replica passes on what one user asks, or one address without a certificate.
const PASSED_PER_USER: usize = 32;
/// The same of all who may do everything, of all nodes, and of all others. Together they are fewer than a connection
/// between nodes has.
const PASSED_OF_MASTERS: usize = 64;
const PASSED_OF_NODES: usize = 32;
const PASSED_OF_OTHERS: usize = 128;
/// When whoever was refused may come again.
const RETRY_AFTER_SECONDS: u32 = 1;

/// Cheap to clone.
#[derive(Clone)]
pub struct Turnstile {
    masters: Arc<Share>,
    nodes: Arc<Share>,
    users: Arc<Share>,
}

impl Default for Turnstile {
    fn default() -> Self {
        let share = |seats_per_user, queue_per_user, long_per_user, sessions_per_user, passed: [usize; 2]| {
            let bounds = Bounds { seats: SEATS, seats_per_user, queue_per_user, queue: QUEUE };
            let (long, sessions) = (Tally::new(long_per_user, LONG), Tally::new(sessions_per_user, SESSIONS));
            Arc::new(Share::new(bounds, long, sessions, Tally::new(passed[0], passed[1])))
        };
        Self {
            masters: share(SEATS, QUEUE, LONG, SESSIONS, [PASSED_OF_MASTERS; 2]),
            nodes: share(SEATS, QUEUE, LONG, SESSIONS, [PASSED_OF_NODES; 2]),
            users: share(
                SEATS_PER_USER,
                QUEUE_PER_USER,
                LONG_PER_USER,
                SESSIONS_PER_USER,
                [PASSED_PER_USER, PASSED_OF_OTHERS],
            ),
        }
    }
}

impl Turnstile {
    /// A seat for a request of this user, as soon as it is their turn.
    ///
    /// # Errors
    /// `TooManyRequests` if too many wait already, or no seat came in time.
    pub async fn enter(&self, user: &User) -> Result<Seat, Status> {
        self.share(user).clone().enter(&user.name).await
    }

    /// Counts an answer that goes on.
    ///
    /// # Errors
    /// `TooManyRequests` if the user has too many.
    pub fn go_on(&self, user: &User) -> Result<Place, Status> {
        self.share(user).clone().place(&user.name, What::Answer)
    }

    /// Counts a session.
    ///
    /// # Errors
    /// `TooManyRequests` if the user has too many.
    pub fn open(&self, user: &User) -> Result<Place, Status> {
        self.share(user).clone().place(&user.name, What::Session)
    }

    /// Counts a stream on which this node passes on what somebody asks. Whoever shows no certificate is told apart by
    /// address, as a token is looked at only by whom it is passed on to.
    ///
    /// # Errors
    /// `TooManyRequests` if they have too many.
    pub fn pass_on(&self, user: Option<&User>, address: Option<IpAddr>) -> Result<Place, Status> {
        match user {
            Some(user) => self.share(user).clone().place(&user.name, What::Passed),
            None => {
                let from = address.map_or_else(|| User::anonymous().name, |address| address.to_string());
                self.users.clone().place(&from, What::Passed)
            }
        }
    }

    fn share(&self, user: &User) -> &Arc<Share> {
        match (user.is_master(), user.as_node()) {
            (true, _) => &self.masters,
            (_, Some(_)) => &self.nodes,
            _ => &self.users,
        }
    }
}

struct Share {
    state: Mutex<State>,
}

struct State {
    fair: Fair,
    called: HashMap<Ticket, oneshot::Sender<()>>,
    long: Tally,
    sessions: Tally,
    passed: Tally,
}

impl State {
    fn tally(&mut self, what: What) -> &mut Tally {
        match what {
            What::Answer => &mut self.long,
            What::Session => &mut self.sessions,
            What::Passed => &mut self.passed,
        }
    }
}

/// What goes on.
#[derive(Clone, Copy)]
enum What {
    Answer,
    Session,
    Passed,
}

/// How many each user has of something, and all together.
struct Tally {
    of: HashMap<String, usize>,
    total: usize,
    most_of_user: usize,
    most: usize,
}

impl Tally {
    fn new(most_of_user: usize, most: usize) -> Self {
        Self { of: HashMap::new(), total: 0, most_of_user, most }
    }

    /// One more, unless there are too many.
    fn add(&mut self, user: &str) -> Result<(), Status> {
        let of_user = self.of.get(user).copied().unwrap_or_default();
        if of_user >= self.most_of_user || self.total >= self.most {
            return Err(too_many());
        }
        self.total += 1;
        self.of.insert(user.to_owned(), of_user + 1);
        Ok(())
    }

    fn remove(&mut self, user: &str) {
        self.total -= 1;
        match self.of.get(user).copied().unwrap_or_default().saturating_sub(1) {
            0 => _ = self.of.remove(user),
            left => _ = self.of.insert(user.to_owned(), left),
        }
    }
}

impl Share {
    fn new(bounds: Bounds, long: Tally, sessions: Tally, passed: Tally) -> Self {
        let state = State { fair: Fair::new(bounds), called: HashMap::new(), long, sessions, passed };
        Self { state: Mutex::new(state) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn enter(self: Arc<Self>, user: &str) -> Result<Seat, Status> {
        let (waiter, called) = {
            let mut state = self.state();
            match state.fair.arrive(user) {
                Arrival::Enter => return Ok(Seat { share: self.clone(), user: user.to_owned() }),
                Arrival::Refuse => return Err(too_many()),
                Arrival::Wait(ticket) => {
                    let (call, called) = oneshot::channel();
                    state.called.insert(ticket, call);
                    (Waiter { share: self.clone(), user: user.to_owned(), ticket: Some(ticket) }, called)
                }
            }
        };
        match tokio::time::timeout(MAX_WAIT, called).await {
            Ok(Ok(())) => Ok(waiter.sit()),
            _ => Err(too_many()),
        }
    }

    fn place(self: Arc<Self>, user: &str, what: What) -> Result<Place, Status> {
        self.state().tally(what).add(user)?;
        Ok(Place { share: self, user: user.to_owned(), what })
    }

    fn leave(&self, user: &str) {
        let mut state = self.state();
        for ticket in state.fair.leave(user) {
            // Whoever no longer listens has a waiter that gives the seat back.
            state.called.remove(&ticket).map(|call| call.send(()));
        }
    }
}

/// A request in the queue. Dropped, it gives up its place, or the seat that it was called to.
struct Waiter {
    share: Arc<Share>,
    user: String,
    ticket: Option<Ticket>,
}

impl Waiter {
    fn sit(mut self) -> Seat {
        self.ticket = None;
        Seat { share: self.share.clone(), user: std::mem::take(&mut self.user) }
    }
}

impl Drop for Waiter {
    fn drop(&mut self) {
        let Some(ticket) = self.ticket else { return };
        let mut state = self.share.state();
        if state.called.remove(&ticket).is_some() {
            state.fair.give_up(&self.user, ticket);
            return;
        }
        drop(state);
        self.share.leave(&self.user);
    }
}

/// Leave to be answered, until dropped.
pub struct Seat {
    share: Arc<Share>,
    user: String,
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.share.leave(&self.user);
    }
}

/// An answer, a session or a stream that goes on, until dropped.
pub struct Place {
    share: Arc<Share>,
    user: String,
    what: What,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.share.state().tally(self.what).remove(&self.user);
    }
}

fn too_many() -> Status {
    Status {
        retry_after_seconds: Some(RETRY_AFTER_SECONDS),
        ..Status::new(Reason::TooManyRequests, "too many requests, please try again later")
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    fn user(name: &str) -> User {
        User::new(name, vec![User::AUTHENTICATED.into()])
    }

    #[tokio::test]
    async fn a_flood_of_one_user_holds_up_nobody_else() {
        let turnstile = Turnstile::default();
        let mut seats = Vec::new();
        for _ in 0..SEATS_PER_USER {
            seats.push(turnstile.enter(&user("loud")).await.unwrap());
        }
        let waiting: Vec<_> = (0..QUEUE_PER_USER)
            .map(|_| {
                let turnstile = turnstile.clone();
                tokio::spawn(async move { turnstile.enter(&user("loud")).await.map(drop) })
            })
            .collect();
        while turnstile.users.state().called.len() < QUEUE_PER_USER {
            tokio::task::yield_now().await;
        }
        let refused = turnstile.enter(&user("loud")).await.err().unwrap();
        assert_eq!((refused.reason.code(), refused.retry_after_seconds), (429, Some(1)));
        for other in [user("quiet"), User::node("n"), User::root(), User::anonymous()] {
            drop(turnstile.enter(&other).await.unwrap());
        }
        drop(seats);
        for one in waiting {
            one.await.unwrap().unwrap();
        }
        assert!(turnstile.users.state().called.is_empty());
    }

    #[test]
    fn whoever_floods_a_node_without_a_replica_leaves_streams_for_others() {
        let turnstile = Turnstile::default();
        let address = |last| Some(IpAddr::from([10, 0, 0, last]));
        let mut held = Vec::new();
        for _ in 0..PASSED_PER_USER {
            held.push(turnstile.pass_on(None, address(1)).unwrap());
        }
        assert_eq!(turnstile.pass_on(None, address(1)).err().unwrap().reason.code(), 429);
        for other in [Some(&user("quiet")), Some(&User::node("n")), Some(&User::root()), None] {
            held.push(turnstile.pass_on(other, address(2)).unwrap());
        }
        held.clear();
        assert!(turnstile.pass_on(None, address(1)).is_ok());
        let all = PASSED_OF_MASTERS + PASSED_OF_NODES + PASSED_OF_OTHERS;
        assert!(all < flotilla_net::MAX_CALLS as usize);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn ten_times_the_load_is_served_in_turns_and_nothing_is_lost() {
        let turnstile = Turnstile::default();
        let (inside, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let tasks: Vec<_> = (0..SEATS * 10)
            .map(|number| {
                let (turnstile, inside, most) = (turnstile.clone(), inside.clone(), most.clone());
                tokio::spawn(async move {
                    let _seat = turnstile.enter(&user(&format!("u{}", number % 40))).await?;
                    most.fetch_max(inside.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                    tokio::task::yield_now().await;
                    inside.fetch_sub(1, Ordering::SeqCst);
                    Ok::<(), Status>(())
                })
            })
            .collect();
        for task in tasks {
            task.await.unwrap().unwrap();
        }
        assert!(most.load(Ordering::SeqCst) <= SEATS);
        let state = turnstile.users.state();
        assert!(state.called.is_empty() && format!("{:?}", state.fair).contains("under_way: 0, waiting: 0"));
    }

    #[tokio::test]
    async fn who_hangs_up_while_waiting_leaves_no_trace() {
        let turnstile = Turnstile::default();
        let mut seats = Vec::new();
        for _ in 0..SEATS_PER_USER {
            seats.push(turnstile.enter(&user("a")).await.unwrap());
        }
        let a = user("a");
        let mut gone = Box::pin(turnstile.enter(&a));
        assert!(futures::poll!(gone.as_mut()).is_pending());
        let mut called = Box::pin(turnstile.enter(&a));
        assert!(futures::poll!(called.as_mut()).is_pending());
        drop(gone);
        seats.pop();
        // It was called and hangs up without looking: the seat is free again.
        drop(called);
        drop(turnstile.enter(&user("a")).await.unwrap());
        drop(seats);
        assert!(format!("{:?}", turnstile.users.state().fair).contains("under_way: 0, waiting: 0"));
    }

    #[test]
    fn answers_that_go_on_are_counted_apart() {
        let turnstile = Turnstile::default();
        let long: Vec<Place> = (0..LONG_PER_USER).map(|_| turnstile.go_on(&user("a")).unwrap()).collect();
        assert!(turnstile.go_on(&user("a")).is_err());
        assert!(turnstile.go_on(&user("b")).is_ok() && turnstile.go_on(&User::root()).is_ok());
        drop(long);
        assert!(turnstile.go_on(&user("a")).is_ok());
        assert!(turnstile.users.state().long.of.is_empty());
    }

    #[test]
    fn nobody_has_all_the_sessions() {
        let turnstile = Turnstile::default();
        let open: Vec<Place> = (0..SESSIONS_PER_USER).map(|_| turnstile.open(&user("a")).unwrap()).collect();
        assert_eq!(turnstile.open(&user("a")).err().unwrap().reason, Reason::TooManyRequests);
        assert!(turnstile.open(&user("b")).is_ok() && turnstile.go_on(&user("a")).is_ok());
        drop(open);
        assert_eq!(turnstile.users.state().sessions.total, 0);
    }
}
