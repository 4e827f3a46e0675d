//! Streams that end when the client hangs up, the daemon stops, or their source does.

use std::pin::Pin;

use futures::Stream;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::task::TaskTracker;

/// Messages made and not yet taken by the client.
const BUFFER: usize = 64;

/// What a streaming method returns.
pub type Answer<T> = Pin<Box<dyn Stream<Item = Result<T, tonic::Status>> + Send>>;

/// Where a streaming method's source puts its messages.
pub type Sender<T> = mpsc::Sender<Result<T, tonic::Status>>;

/// Runs `source` for as long as somebody listens. An error it returns is the stream's last item.
pub fn stream<T, F>(source: impl FnOnce(Sender<T>) -> F) -> Answer<T>
where
    T: Send + 'static,
    F: Future<Output = Result<(), tonic::Status>> + Send + 'static,
{
    let (send, receive) = mpsc::channel(BUFFER);
    let closed = send.clone();
    let run = source(send.clone());
    let task = async move {
        tokio::select! {
            result = run => if let Err(status) = result { _ = send.send(Err(status)).await },
            () = closed.closed() => {}
        }
    };
    // The source is polled by the stream itself, so that it needs no owner and ends with it.
    Box::pin(Driven { receive: ReceiverStream::new(receive), task: Some(Box::pin(task)) })
}

/// Runs `source` to its end on `tasks`, whether or not somebody still listens.
pub fn finished<T, F>(tasks: &TaskTracker, source: impl FnOnce(Sender<T>) -> F) -> Answer<T>
where
    T: Send + 'static,
    F: Future<Output = Result<(), tonic::Status>> + Send + 'static,
{
    let (send, receive) = mpsc::channel(BUFFER);
    let run = source(send.clone());
    tasks.spawn(async move {
        if let Err(status) = run.await {
            // A client that hung up does not hear it.
            _ = send.send(Err(status)).await;
        }
    });
    Box::pin(ReceiverStream::new(receive))
}

struct Driven<T> {
    receive: ReceiverStream<Result<T, tonic::Status>>,
    task: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
}

impl<T> Stream for Driven<T> {
    type Item = Result<T, tonic::Status>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut std::task::Context<'_>) -> std::task::Poll<Option<Self::Item>> {
        if let Some(task) = &mut self.task
            && task.as_mut().poll(cx).is_ready()
        {
            self.task = None;
        }
        Pin::new(&mut self.receive).poll_next(cx)
    }
}
