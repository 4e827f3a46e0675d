//! A connection as a client sees it that speaks in frames.

use bytes::Bytes;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};

use super::frame::{self, Control, HEAD_BYTES, Head};
use super::headers::{Deflater, Headers, Inflater};
use super::{Acceptor, Connection, SpdyError};

/// A client of few words.
struct Client {
    io: DuplexStream,
    deflater: Deflater,
    inflater: Inflater,
}

#[derive(Debug, PartialEq)]
enum Seen {
    Data(u32, bool, usize),
    Control(Control),
    End,
}

impl Client {
    fn connect() -> (Self, Connection<DuplexStream>, Acceptor) {
        let (near, far) = tokio::io::duplex(1 << 20);
        let (connection, acceptor) = Connection::new(far);
        (Self { io: near, deflater: Deflater::default(), inflater: Inflater::default() }, connection, acceptor)
    }

    async fn send(&mut self, bytes: &[u8]) {
        self.io.write_all(bytes).await.unwrap();
    }

    async fn open(&mut self, stream: u32, kind: &str) {
        let block = self.deflater.block(&Headers::of(&[("streamtype", kind)])).unwrap();
        self.send(&frame::syn_stream(stream, false, &block)).await;
    }

    async fn data(&mut self, stream: u32, fin: bool, data: &[u8]) {
        self.send(&frame::data(stream, fin, data.len())).await;
        self.send(data).await;
    }

    async fn next(&mut self) -> Seen {
        let mut head = [0; HEAD_BYTES];
        if self.io.read_exact(&mut head).await.is_err() {
            return Seen::End;
        }
        match frame::head(head).unwrap() {
            Head::Data { stream, fin, length } => {
                self.io.read_exact(&mut vec![0; length]).await.unwrap();
                Seen::Data(stream, fin, length)
            }
            Head::Control { kind, flags, length } => {
                let mut body = vec![0; length];
                self.io.read_exact(&mut body).await.unwrap();
                let control = frame::control(kind, flags, &body).unwrap();
                if let Control::SynReply { block, .. } = &control {
                    self.inflater.headers(block).unwrap();
                }
                Seen::Control(control)
            }
        }
    }

    async fn replied(&mut self, id: u32) {
        assert!(matches!(self.next().await, Seen::Control(Control::SynReply { stream, .. }) if stream == id));
    }
}

#[tokio::test]
async fn streams_carry_bytes_both_ways_and_end_each_way() {
    let (mut client, connection, mut acceptor) = Client::connect();
    let work = async move {
        let mut one = acceptor.next().await.unwrap();
        let two = acceptor.next().await.unwrap();
        assert_eq!((one.headers.get("streamtype"), two.headers.get("streamtype")), (Some("data"), Some("error")));
        two.writer.finish().await.unwrap();
        let mut heard = Vec::new();
        while let Some(piece) = one.reader.next().await {
            heard.extend_from_slice(&piece);
        }
        assert_eq!(heard.len(), 300_000);
        one.writer.write(Bytes::from(heard)).await.unwrap();
        one.writer.finish().await.unwrap();
    };
    let talk = async {
        client.open(1, "data").await;
        client.replied(1).await;
        client.open(3, "error").await;
        client.replied(3).await;
        assert_eq!(client.next().await, Seen::Data(3, true, 0));
        client.data(1, false, &[7; 100_000]).await;
        client.data(1, true, &[7; 200_000]).await;
        let (mut bytes, mut credit) = (0, 0);
        loop {
            match client.next().await {
                Seen::Data(1, true, 0) => break,
                Seen::Data(1, false, length) => bytes += length,
                Seen::Control(Control::Window { stream: 1, delta_bytes }) => credit += delta_bytes,
                Seen::Control(Control::Window { stream: 0, .. }) => {}
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(bytes, 300_000);
        assert!((200_000..=300_000).contains(&credit), "told of {credit}");
        assert_eq!(client.next().await, Seen::Control(Control::GoAway));
        assert_eq!(client.next().await, Seen::End);
        drop(client);
    };
    let (ran, ()) = tokio::join!(connection.run(work), talk);
    ran.unwrap();
}

#[tokio::test]
async fn a_client_that_knows_of_windows_is_not_sent_more_than_it_takes() {
    let (mut client, connection, mut acceptor) = Client::connect();
    let work = async move {
        let mut stream = acceptor.next().await.unwrap();
        assert!(stream.reader.next().await.is_some());
        stream.writer.write(Bytes::from(vec![0; 10_000])).await.unwrap();
        stream.writer.finish().await.unwrap();
    };
    let talk = async {
        client.send(&frame::settings(4_000)).await;
        client.open(1, "data").await;
        client.replied(1).await;
        client.data(1, true, b"go").await;
        let mut got = 0;
        while got < 4_000 {
            let Seen::Data(1, false, length) = client.next().await else { panic!() };
            got += length;
        }
        client.send(&frame::ping(5)).await;
        assert_eq!(client.next().await, Seen::Control(Control::Ping(5)), "and not a byte more");
        client.send(&frame::window(1, 6_000)).await;
        assert_eq!(client.next().await, Seen::Data(1, false, 6_000));
        assert_eq!(client.next().await, Seen::Data(1, true, 0));
        drop(client);
    };
    let (ran, ()) = tokio::join!(connection.run(work), talk);
    ran.unwrap();
}

#[tokio::test]
async fn a_stream_that_nobody_reads_holds_up_its_client_and_takes_no_more_memory() {
    let (mut client, connection, mut acceptor) = Client::connect();
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let work = async move {
        let stream = acceptor.next().await.unwrap();
        _ = stopped.await;
        drop(stream);
    };
    let talk = async {
        client.open(1, "data").await;
        client.replied(1).await;
        // The pipe between holds a megabyte, the stream 64 KiB: the rest waits.
        let flood = vec![0; 16 * 1024];
        let mut sent = 0;
        while let Ok(()) =
            tokio::time::timeout(std::time::Duration::from_millis(200), client.data(1, false, &flood)).await
        {
            sent += flood.len();
            assert!(sent < 2 << 20, "{sent} bytes were taken");
        }
        stop.send(()).unwrap();
        drop(client);
    };
    let (ran, ()) = tokio::join!(connection.run(work), talk);
    _ = ran;
}

#[tokio::test]
async fn the_rules_are_kept() {
    for breach in ["version", "even", "again", "junk"] {
        let (mut client, connection, mut acceptor) = Client::connect();
        let work = async move { while acceptor.next().await.is_some() {} };
        let talk = async {
            client.open(3, "data").await;
            match breach {
                "version" => client.send(&[0x80, 2, 0, 1, 0, 0, 0, 0]).await,
                "even" => client.open(4, "data").await,
                "again" => client.open(3, "data").await,
                _ => client.send(&frame::syn_stream(5, false, b"not zlib")).await,
            }
            let mut said_goodbye = false;
            loop {
                match client.next().await {
                    Seen::Control(Control::GoAway) => said_goodbye = true,
                    Seen::End => break,
                    _ => {}
                }
            }
            assert!(said_goodbye, "{breach}");
        };
        let (ran, ()) = tokio::join!(connection.run(work), talk);
        assert!(matches!(ran, Err(SpdyError::Protocol(_))), "{breach}");
    }
}

#[tokio::test]
async fn what_the_client_resets_ends_for_us_and_what_we_drop_for_it() {
    let (mut client, connection, mut acceptor) = Client::connect();
    let work = async move {
        let mut stream = acceptor.next().await.unwrap();
        assert!(stream.reader.next().await.is_none());
        assert!(stream.writer.write(Bytes::from_static(b"x")).await.is_err());
        drop(stream);
        drop(acceptor.next().await.unwrap());
    };
    let talk = async {
        client.open(1, "data").await;
        client.replied(1).await;
        client.send(&frame::reset(1, frame::CANCEL)).await;
        client.open(3, "data").await;
        let mut reset = Vec::new();
        loop {
            match client.next().await {
                Seen::Control(Control::Reset { stream, .. }) => reset.push(stream),
                Seen::Control(Control::GoAway) => break,
                _ => {}
            }
        }
        assert!(reset.contains(&3), "{reset:?}");
        drop(client);
    };
    let (ran, ()) = tokio::join!(connection.run(work), talk);
    ran.unwrap();
}
