//! The engine on a thread of its own: others send messages, results stream back.

use crate::engine::{Engine, Stats};
use crate::request::{Event, FinishReason, Request, RequestError, RequestId, Usage};
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread::JoinHandle;

/// Talks to an engine. The engine lives until the last handle and the last stream are gone.
#[derive(Clone)]
pub struct EngineHandle {
    messages: Sender<Message>,
    /// Dropped last: waits for the thread, so that the model's memory is free when the handle is gone.
    _thread: Arc<Thread>,
}

enum Message {
    Submit(
        Request,
        Sender<Result<(RequestId, Receiver<Event>), RequestError>>,
    ),
    Cancel(RequestId),
    Stats(Sender<Stats>),
    Stop,
}

struct Thread {
    messages: Sender<Message>,
    handle: Option<JoinHandle<()>>,
}

impl Drop for Thread {
    fn drop(&mut self) {
        // Both fail only if the thread is gone already, by a panic that it has reported itself.
        let _ = self.messages.send(Message::Stop);
        if let Some(handle) = self.handle.take() {
            let _ = handle.join();
        }
    }
}

/// The events of one request, in order, to the one that ends it. Dropped before that, it cancels the request.
pub struct Stream {
    id: RequestId,
    events: Receiver<Event>,
    messages: Sender<Message>,
    ended: bool,
}

impl EngineHandle {
    /// Starts the thread. What `make` makes the engine of is moved there before, so that memory is touched first where
    /// it is used.
    ///
    /// # Errors
    /// The system gives no thread.
    pub fn spawn(engine: Engine) -> std::io::Result<Self> {
        let (messages, inbox) = mpsc::channel();
        let handle = std::thread::Builder::new()
            .name("engine".to_owned())
            .spawn(move || serve(engine, &inbox))?;
        let thread = Thread {
            messages: messages.clone(),
            handle: Some(handle),
        };
        Ok(Self {
            messages,
            _thread: Arc::new(thread),
        })
    }

    /// Takes a request on.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn submit(&self, request: Request) -> Result<Stream, RequestError> {
        let (reply, answer) = mpsc::channel();
        let sent = self.messages.send(Message::Submit(request, reply));
        sent.map_err(|_| RequestError::Stopped)?;
        let (id, events) = answer.recv().map_err(|_| RequestError::Stopped)??;
        Ok(Stream {
            id,
            events,
            messages: self.messages.clone(),
            ended: false,
        })
    }

    /// How the engine stands; `None` if it has stopped.
    pub fn stats(&self) -> Option<Stats> {
        let (reply, answer) = mpsc::channel();
        self.messages.send(Message::Stats(reply)).ok()?;
        answer.recv().ok()
    }
}

impl Stream {
    /// Gives the request up. Its blocks are free before the next step, and the stream ends.
    pub fn cancel(self) {
        drop(self);
    }
}

impl Iterator for Stream {
    type Item = Event;

    /// Waits for the next event.
    fn next(&mut self) -> Option<Event> {
        if self.ended {
            return None;
        }
        let event = self.events.recv().unwrap_or_else(|_| {
            // The thread is gone, and its panic message with it on standard error.
            let reason = FinishReason::Error("the engine has stopped".to_owned());
            Event::Finished {
                reason,
                usage: Usage::default(),
            }
        });
        self.ended = matches!(event, Event::Finished { .. });
        Some(event)
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        if !self.ended {
            // Fails only if the engine is gone, and the request with it.
            let _ = self.messages.send(Message::Cancel(self.id));
        }
    }
}

fn serve(mut engine: Engine, inbox: &Receiver<Message>) {
    engine.stay_near_memory();
    let mut clients: HashMap<RequestId, Sender<Event>> = HashMap::new();
    loop {
        // With nothing to do, wait. Else take what has come, and go on.
        let mut next = match engine.has_work() {
            true => inbox.try_recv().ok(),
            false => match inbox.recv() {
                Ok(message) => Some(message),
                Err(_) => return,
            },
        };
        while let Some(message) = next {
            match message {
                Message::Stop => return,
                message => answer(message, &mut engine, &mut clients),
            }
            next = inbox.try_recv().ok();
        }
        for output in engine.step() {
            let ended = matches!(output.event, Event::Finished { .. });
            if let Some(client) = clients.get(&output.request) {
                // A client that is gone has sent a cancellation.
                let _ = client.send(output.event);
            }
            if ended {
                clients.remove(&output.request);
            }
        }
    }
}

fn answer(message: Message, engine: &mut Engine, clients: &mut HashMap<RequestId, Sender<Event>>) {
    match message {
        Message::Submit(request, reply) => {
            let accepted = engine.submit(request).map(|id| {
                let (client, events) = mpsc::channel();
                clients.insert(id, client);
                (id, events)
            });
            if let Err(mpsc::SendError(Ok((id, _)))) = reply.send(accepted) {
                engine.cancel(id);
                clients.remove(&id);
            }
        }
        Message::Cancel(id) => {
            engine.cancel(id);
            clients.remove(&id);
        }
        Message::Stats(reply) => {
            // A client that is gone does not want to know.
            let _ = reply.send(engine.stats());
        }
        Message::Stop => {}
    }
}
