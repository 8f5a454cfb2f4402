//! Before statements are held: opens every connection that a cutover needs, and runs on each what it will run, so that
//! nothing is opened, parsed or looked up for the first time while statements wait.
//!
//! What must stay true: nothing of it stays, but sequences that are further on; whoever would be waited for by the fence is
//! found now.

use super::{activate, asking::line, asking::named, fence, ready, sequences, turn};
use crate::{
    inspect::at_once,
    reshard::{
        job::{Job, StepError},
        servers::Server,
    },
};

/// How many connections to a source or destination are used at a time: one for the step, one for sequences.
const AT_A_TIME: usize = 2;

/// Rehearses a cutover in the job's direction.
///
/// # Errors
/// [`StepError::Again`] as well while somebody is at the tables for whom the fence would wait.
pub async fn run(job: &Job) -> Result<(), StepError> {
    let (sources, destinations) = (job.sources(), job.destinations());
    let home = named(job, &job.home)?;
    let all = sources.iter().chain(&destinations);
    let opened = all.chain([home]).map(|it| open(job, it));
    all_of(at_once(opened.collect()).await)?;
    ready::same_tables(job).await?;
    let fenced = sources.iter().map(|it| fence::rehearse(job, it));
    let noted = sources.iter().map(|it| turn::rehearse(job, it));
    let activated = destinations.iter().map(|it| activate::rehearse(job, it));
    let (fenced, activated, set) = tokio::join!(
        at_once(fenced.collect()),
        at_once(activated.collect()),
        sequences::run(job)
    );
    all_of(fenced)?;
    all_of(activated)?;
    set?;
    all_of(at_once(noted.collect()).await)
}

async fn open(job: &Job, server: &Server) -> Result<(), StepError> {
    let lines = at_once((0..AT_A_TIME).map(|_| line(job, server)).collect()).await;
    for line in lines {
        line?.done();
    }
    Ok(())
}

fn all_of(each: Vec<Result<(), StepError>>) -> Result<(), StepError> {
    each.into_iter().collect()
}
