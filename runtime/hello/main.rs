//! The program of the image that ships inside Flotilla: something to run before any registry is known.
//!
//! It is linked statically and uses the C library alone, so that the image is this one small file.
//!
//! ```text
//! hello [serve]               answers HTTP on $PORT (80) with its host name, $GREETING and $ENVIRONMENT
//! hello echo WORD...          prints the words
//! hello sleep SECONDS         sleeps
//! hello count [N [MS]]        prints 1 to N (endlessly) with MS (1000) milliseconds in between
//! hello fail [CODE]           exits with CODE (1)
//! ```
//!
//! As `pause` it does nothing for ever, for pods whose containers share their processes.
//!
//! Invariant: SIGTERM and SIGINT end it at once, also as process 1 of a container: `serve` and `count`
//! with 0, since being stopped is how they end, the others with 143.
#![no_std]
#![no_main]

use core::ffi::{CStr, c_char, c_int, c_long, c_void};
use core::fmt::{self, Write};
use core::sync::atomic::{AtomicI32, Ordering};

/// The calls that are used, as POSIX has them; layouts are those of Linux.
mod c {
    use super::*;

    #[repr(C)]
    pub struct PollFd {
        pub fd: c_int,
        pub events: i16,
        pub revents: i16,
    }

    #[repr(C)]
    pub struct SockAddrIn6 {
        pub family: u16,
        pub port: u16,
        pub flow: u32,
        pub address: [u8; 16],
        pub scope: u32,
    }

    #[repr(C)]
    pub struct SockAddrIn {
        pub family: u16,
        pub port: u16,
        pub address: u32,
        pub zero: [u8; 8],
    }

    #[repr(C)]
    pub struct TimeSpec {
        pub seconds: c_long,
        pub nanoseconds: c_long,
    }

    unsafe extern "C" {
        pub fn read(fd: c_int, buffer: *mut c_void, count: usize) -> isize;
        pub fn write(fd: c_int, buffer: *const c_void, count: usize) -> isize;
        pub fn close(fd: c_int) -> c_int;
        pub fn socket(domain: c_int, kind: c_int, protocol: c_int) -> c_int;
        pub fn setsockopt(fd: c_int, level: c_int, name: c_int, value: *const c_void, length: u32) -> c_int;
        pub fn bind(fd: c_int, address: *const c_void, length: u32) -> c_int;
        pub fn listen(fd: c_int, backlog: c_int) -> c_int;
        pub fn accept4(fd: c_int, address: *mut c_void, length: *mut u32, flags: c_int) -> c_int;
        pub fn poll(fds: *mut PollFd, count: u64, timeout_ms: c_int) -> c_int;
        pub fn gethostname(name: *mut c_char, length: usize) -> c_int;
        pub fn getenv(name: *const c_char) -> *const c_char;
        pub fn signal(number: c_int, handler: usize) -> usize;
        pub fn clock_gettime(clock: c_int, time: *mut TimeSpec) -> c_int;
        pub fn pause() -> c_int;
        pub fn prctl(option: c_int, ...) -> c_int;
        pub fn nanosleep(time: *const TimeSpec, rest: *mut TimeSpec) -> c_int;
        pub fn _exit(code: c_int) -> !;
        pub fn abort() -> !;
    }

    pub const AF_INET: c_int = 2;
    pub const AF_INET6: c_int = 10;
    pub const SOCK_STREAM: c_int = 1;
    pub const SOCK_NONBLOCK: c_int = 0o4000;
    pub const SOL_SOCKET: c_int = 1;
    pub const SO_REUSEADDR: c_int = 2;
    pub const IPPROTO_IPV6: c_int = 41;
    pub const IPV6_V6ONLY: c_int = 26;
    pub const POLLIN: i16 = 1;
    pub const CLOCK_MONOTONIC: c_int = 1;
    pub const SIGINT: c_int = 2;
    pub const SIGPIPE: c_int = 13;
    pub const SIGTERM: c_int = 15;
    pub const SIG_DFL: usize = 0;
    pub const SIG_IGN: usize = 1;
    pub const PR_SET_DUMPABLE: c_int = 4;
    pub const PR_SET_NAME: c_int = 15;
}

const USAGE: &str = "usage: hello [serve | echo WORD... | sleep SECONDS | count [N [MS]] | fail [CODE]]\n";
const TERMINATED: c_int = 143;

static EXIT_CODE_WHEN_STOPPED: AtomicI32 = AtomicI32::new(TERMINATED);

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    // SAFETY: abort has no preconditions.
    unsafe { c::abort() }
}

extern "C" fn stop(_: c_int) {
    // SAFETY: _exit is safe in a signal handler.
    unsafe { c::_exit(EXIT_CODE_WHEN_STOPPED.load(Ordering::Relaxed)) }
}

/// # Safety
/// Called by the C runtime with the process's arguments.
#[unsafe(no_mangle)]
unsafe extern "C" fn main(count: c_int, values: *const *const c_char) -> c_int {
    // SAFETY: the handlers live as long as the process, and `stop` only makes calls allowed in one.
    unsafe {
        c::signal(c::SIGTERM, stop as *const () as usize);
        c::signal(c::SIGINT, stop as *const () as usize);
        c::signal(c::SIGPIPE, c::SIG_IGN);
    }
    let arguments = Arguments { count: usize::try_from(count).unwrap_or(0), values };
    match arguments.get(1).unwrap_or("serve") {
        "serve" => serve(),
        "echo" => echo(&arguments),
        "sleep" => sleep_ms(arguments.number(2).unwrap_or(0).saturating_mul(1000)),
        "count" => count_up(arguments.number(2).unwrap_or(u64::MAX), arguments.number(3).unwrap_or(1000)),
        "pause" => pause(),
        "fail" => arguments.number(2).map_or(1, |code| (code & 0xff) as c_int),
        _ => {
            print(2, USAGE.as_bytes());
            64
        }
    }
}

struct Arguments {
    count: usize,
    values: *const *const c_char,
}

impl Arguments {
    fn get(&self, index: usize) -> Option<&str> {
        if index >= self.count {
            return None;
        }
        // SAFETY: `values` holds `count` strings that live as long as the process.
        let text = unsafe { CStr::from_ptr(*self.values.add(index)) };
        Some(text.to_str().unwrap_or("?"))
    }

    fn number(&self, index: usize) -> Option<u64> {
        self.get(index)?.parse().ok()
    }
}

fn echo(arguments: &Arguments) -> c_int {
    for index in 2..arguments.count {
        print(1, arguments.get(index).unwrap_or_default().as_bytes());
        print(1, if index + 1 < arguments.count { b" " } else { b"" });
    }
    print(1, b"\n");
    0
}

fn count_up(last: u64, interval_ms: u64) -> c_int {
    EXIT_CODE_WHEN_STOPPED.store(0, Ordering::Relaxed);
    for number in 1..=last {
        let mut line = Text::new();
        let _ = writeln!(line, "{number}");
        print(1, line.bytes());
        if number < last {
            sleep_ms(interval_ms);
        }
    }
    0
}

fn sleep_ms(duration_ms: u64) -> c_int {
    let seconds = c_long::try_from(duration_ms / 1000).unwrap_or(c_long::MAX);
    let mut rest = c::TimeSpec { seconds, nanoseconds: (duration_ms % 1000 * 1_000_000) as c_long };
    // SAFETY: both pointers are to a valid TimeSpec; nanosleep allows them to be the same.
    while unsafe { c::nanosleep(&raw const rest, &raw mut rest) } != 0 {}
    0
}

/// As process 1 of a pod it must not end before the pod does.
fn pause() -> ! {
    // SAFETY: signals that nobody handles do not reach a process 1; the name is terminated. Who has no more rights than this
    // process, and only those, must not trace it.
    unsafe {
        c::signal(c::SIGTERM, c::SIG_DFL);
        c::signal(c::SIGINT, c::SIG_DFL);
        c::prctl(c::PR_SET_NAME, c"pause".as_ptr());
        c::prctl(c::PR_SET_DUMPABLE, 0 as c_long);
        loop {
            c::pause();
        }
    }
}

fn print(fd: c_int, mut bytes: &[u8]) {
    while !bytes.is_empty() {
        // SAFETY: the pointer is valid for the length given.
        match unsafe { c::write(fd, bytes.as_ptr().cast(), bytes.len()) } {
            written @ 1.. => bytes = &bytes[written as usize..],
            _ => return,
        }
    }
}

/// Text of bounded length; what does not fit is cut off.
struct Text {
    buffer: [u8; 2048],
    length: usize,
}

impl Text {
    const fn new() -> Self {
        Self { buffer: [0; 2048], length: 0 }
    }

    fn bytes(&self) -> &[u8] {
        &self.buffer[..self.length]
    }
}

impl Write for Text {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let room = self.buffer.len() - self.length;
        let taken = text.len().min(room);
        self.buffer[self.length..self.length + taken].copy_from_slice(&text.as_bytes()[..taken]);
        self.length += taken;
        Ok(())
    }
}

fn environment(name: &CStr) -> Option<&'static str> {
    // SAFETY: the name is terminated; the environment is never changed, so the value lives on.
    let value = unsafe { c::getenv(name.as_ptr()) };
    if value.is_null() {
        return None;
    }
    // SAFETY: a value that is not null is a terminated string.
    unsafe { CStr::from_ptr(value) }.to_str().ok().filter(|text| !text.is_empty())
}

const CONNECTIONS_MAX: usize = 64;
const REQUEST_BYTES_MAX: usize = 2048;
const REQUEST_WAIT_S: c_long = 5;
const FREE: c_int = -1;

struct Connection {
    fd: c_int,
    length: usize,
    deadline_s: c_long,
    request: [u8; REQUEST_BYTES_MAX],
}

/// Serves until it is stopped; one thread, and no client can hold up another.
fn serve() -> c_int {
    EXIT_CODE_WHEN_STOPPED.store(0, Ordering::Relaxed);
    let port = environment(c"PORT").and_then(|text| text.parse().ok()).unwrap_or(80);
    let listener = listen(port);
    if listener < 0 {
        let mut line = Text::new();
        let _ = writeln!(line, "hello: cannot listen on port {port}");
        print(2, line.bytes());
        return 1;
    }
    let mut line = Text::new();
    let _ = writeln!(line, "hello: serving on port {port}");
    print(1, line.bytes());
    let mut connections =
        [const { Connection { fd: FREE, length: 0, deadline_s: 0, request: [0; REQUEST_BYTES_MAX] } }; CONNECTIONS_MAX];
    loop {
        step(listener, &mut connections);
    }
}

/// Waits for something to happen and sees to it.
fn step(listener: c_int, connections: &mut [Connection; CONNECTIONS_MAX]) {
    let mut polled = [const { c::PollFd { fd: FREE, events: c::POLLIN, revents: 0 } }; CONNECTIONS_MAX + 1];
    for (slot, connection) in polled.iter_mut().zip(connections.iter()) {
        slot.fd = connection.fd;
    }
    if connections.iter().any(|connection| connection.fd == FREE) {
        polled[CONNECTIONS_MAX].fd = listener;
    }
    // SAFETY: the array is valid for its length; entries with a negative descriptor are ignored.
    unsafe { c::poll(polled.as_mut_ptr(), polled.len() as u64, 1000) };
    let now_s = now_s();
    for (slot, connection) in polled.iter().zip(connections.iter_mut()) {
        if connection.fd == FREE {
            continue;
        }
        if slot.revents != 0 {
            receive(connection);
        }
        if connection.fd != FREE && now_s >= connection.deadline_s {
            finish(connection);
        }
    }
    if polled[CONNECTIONS_MAX].revents != 0 {
        accept(listener, connections, now_s);
    }
}

fn accept(listener: c_int, connections: &mut [Connection], now_s: c_long) {
    // SAFETY: the peer's address is not asked for.
    let fd = unsafe { c::accept4(listener, core::ptr::null_mut(), core::ptr::null_mut(), c::SOCK_NONBLOCK) };
    match connections.iter_mut().find(|connection| connection.fd == FREE) {
        Some(connection) if fd >= 0 => {
            connection.fd = fd;
            connection.length = 0;
            connection.deadline_s = now_s + REQUEST_WAIT_S;
        }
        _ => {}
    }
}

/// Reads what came; answers once the request's head is whole.
fn receive(connection: &mut Connection) {
    let room = &mut connection.request[connection.length..];
    // SAFETY: the buffer is valid for its length.
    let count = unsafe { c::read(connection.fd, room.as_mut_ptr().cast(), room.len()) };
    if count <= 0 {
        return finish(connection);
    }
    connection.length += count as usize;
    let request = &connection.request[..connection.length];
    let is_whole = request.windows(4).any(|bytes| bytes == b"\r\n\r\n");
    if is_whole || connection.length == REQUEST_BYTES_MAX {
        answer(connection.fd, request);
        finish(connection);
    }
}

fn finish(connection: &mut Connection) {
    // SAFETY: the descriptor is ours, and forgotten at once.
    unsafe { c::close(connection.fd) };
    connection.fd = FREE;
}

fn answer(fd: c_int, request: &[u8]) {
    let line = request.split(|byte| *byte == b'\r').next().unwrap_or_default();
    let is_head = line.starts_with(b"HEAD ");
    let mut body = Text::new();
    greet(&mut body);
    let mut response = Text::new();
    let _ = write!(
        response,
        "HTTP/1.1 200 OK\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        body.length
    );
    print(fd, response.bytes());
    if !is_head {
        print(fd, body.bytes());
    }
    let mut log = Text::new();
    for byte in line.iter().take(200).filter(|byte| byte.is_ascii_graphic() || **byte == b' ') {
        let _ = log.write_char(*byte as char);
    }
    let _ = writeln!(log, " 200");
    print(1, log.bytes());
}

fn greet(body: &mut Text) {
    let mut name = [0; 256];
    // SAFETY: the last byte stays 0, so the name is terminated whatever its length.
    unsafe { c::gethostname(name.as_mut_ptr(), name.len() - 1) };
    // SAFETY: terminated, as said above.
    let name = unsafe { CStr::from_ptr(name.as_ptr()) }.to_str().unwrap_or("?");
    let _ = write!(body, "{} from {name}", environment(c"GREETING").unwrap_or("hello"));
    if let Some(environment) = environment(c"ENVIRONMENT") {
        let _ = write!(body, " in {environment}");
    }
    let _ = writeln!(body);
}

/// Listens on every address, IPv6 and IPv4, or IPv4 alone where there is no IPv6.
fn listen(port: u16) -> c_int {
    let six = c::SockAddrIn6 { family: c::AF_INET6 as u16, port: port.to_be(), flow: 0, address: [0; 16], scope: 0 };
    let four = c::SockAddrIn { family: c::AF_INET as u16, port: port.to_be(), address: 0, zero: [0; 8] };
    let fd = listen_on(c::AF_INET6, (&raw const six).cast(), size_of::<c::SockAddrIn6>() as u32);
    if fd >= 0 { fd } else { listen_on(c::AF_INET, (&raw const four).cast(), size_of::<c::SockAddrIn>() as u32) }
}

fn listen_on(domain: c_int, address: *const c_void, length: u32) -> c_int {
    let (yes, no): (c_int, c_int) = (1, 0);
    let size = size_of::<c_int>() as u32;
    // SAFETY: each pointer is valid for the length that goes with it.
    unsafe {
        let fd = c::socket(domain, c::SOCK_STREAM | c::SOCK_NONBLOCK, 0);
        if fd < 0 {
            return fd;
        }
        c::setsockopt(fd, c::SOL_SOCKET, c::SO_REUSEADDR, (&raw const yes).cast(), size);
        if domain == c::AF_INET6 {
            c::setsockopt(fd, c::IPPROTO_IPV6, c::IPV6_V6ONLY, (&raw const no).cast(), size);
        }
        if c::bind(fd, address, length) == 0 && c::listen(fd, 128) == 0 {
            return fd;
        }
        c::close(fd);
        -1
    }
}

fn now_s() -> c_long {
    let mut time = c::TimeSpec { seconds: 0, nanoseconds: 0 };
    // SAFETY: the pointer is to a valid TimeSpec.
    unsafe { c::clock_gettime(c::CLOCK_MONOTONIC, &raw mut time) };
    time.seconds
}
