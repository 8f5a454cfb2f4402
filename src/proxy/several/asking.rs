//! Asks several backends at once, each a statement of ours, and hears every answer to its end.

use super::super::{link::Link, session::first_value};
use crate::wire::{
    backend::{Status, command_tag, parameter_status},
    frame,
    frontend::put_query,
    notice::{self, Words},
};
use std::{
    future::{Future, poll_fn},
    task::Poll,
};

/// What came of a statement.
#[derive(Debug)]
pub(super) enum Answer {
    /// The tag of its last command, and the first value of its last row.
    Done { tag: Vec<u8>, value: Option<String> },
    /// The server's error.
    Failed(Words),
    /// The connection is gone: what the statement did is unknown.
    Lost,
}

/// Asks every link at once; the answers are in the links' order.
pub(super) async fn ask_each(links: Vec<(&mut Link, Vec<u8>)>) -> Vec<Answer> {
    let asked = links.into_iter().map(|(link, sql)| ask(link, sql));
    all(asked.collect()).await
}

/// Waits for all of them at once.
pub(super) async fn all<F: Future>(futures: Vec<F>) -> Vec<F::Output> {
    let mut running: Vec<_> = futures.into_iter().map(Box::pin).collect();
    let mut done: Vec<Option<F::Output>> = running.iter().map(|_| None).collect();
    poll_fn(|cx| {
        for (future, done) in running.iter_mut().zip(&mut done) {
            if done.is_none()
                && let Poll::Ready(found) = future.as_mut().poll(cx)
            {
                *done = Some(found);
            }
        }
        if done.iter().all(Option::is_some) {
            Poll::Ready(())
        } else {
            Poll::Pending
        }
    })
    .await;
    done.into_iter().flatten().collect()
}

/// Asks one link, which is at rest, maybe within a transaction.
pub(super) async fn ask(link: &mut Link, sql: Vec<u8>) -> Answer {
    put_query(link.lease.stream.out(), &sql);
    // A simple query ends the unnamed statement.
    link.lease.unnamed = None;
    let mut heard = Heard::default();
    // What it said before it closed is still there to be read.
    drop(link.lease.stream.flush().await);
    loop {
        if let Some(answer) = heard.next(link) {
            return answer;
        }
        if !matches!(link.lease.stream.fill().await, Ok(count) if count > 0) {
            return Answer::Lost;
        }
    }
}

#[derive(Default)]
struct Heard {
    tag: Vec<u8>,
    value: Option<String>,
    problem: Option<Words>,
}

impl Heard {
    /// Judges what has arrived; `None`: there is more to come.
    fn next(&mut self, link: &mut Link) -> Option<Answer> {
        loop {
            let buffered = link.lease.stream.buffered();
            let header = match frame::backend(buffered) {
                Ok(Some(header)) if header.size <= buffered.len() => header,
                Ok(_) => return None,
                // Its bytes make no sense: it is as good as gone.
                Err(_) => return Some(Answer::Lost),
            };
            let body = &buffered[frame::HEADER..header.size];
            let mut status = None;
            match header.tag {
                b'E' => {
                    let fatal = notice::field(body, b'V')
                        .is_some_and(|severity| severity == b"FATAL" || severity == b"PANIC");
                    if self.problem.is_none() || fatal {
                        self.problem = Some(Words::Servers(body.to_vec()));
                    }
                }
                b'C' => self.tag = command_tag(body).unwrap_or_default().to_vec(),
                b'D' => self.value = first_value(body),
                b'Z' => match Status::decode(body) {
                    Ok(found) => status = Some(found),
                    Err(_) => return Some(Answer::Lost),
                },
                b'S' => {
                    if let Ok((name, value)) = parameter_status(body) {
                        let (name, value) = (name.to_vec(), value.to_vec());
                        link.lease.reported.set(&name, &value);
                    }
                }
                _ => {}
            }
            link.lease.stream.consume(header.size);
            if let Some(status) = status {
                link.status = status;
                return Some(match self.problem.take() {
                    Some(words) => Answer::Failed(words),
                    None => Answer::Done {
                        tag: std::mem::take(&mut self.tag),
                        value: self.value.take(),
                    },
                });
            }
        }
    }
}
