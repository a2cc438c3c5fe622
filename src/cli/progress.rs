//! How far it is: a bar on a terminal, a line now and then elsewhere. On standard error, where it is in nobody's way.

use std::{
    io::{IsTerminal as _, stderr},
    sync::Arc,
    time::{Duration, Instant},
};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use tokio_util::task::AbortOnDropHandle;
use vitrine_engine::pipeline::{Progress, Snapshot, Stage};

use super::output::short_size;

/// How often the bar moves.
const TICK: Duration = Duration::from_millis(100);
/// How often a line is written where there is no terminal.
const LINES: Duration = Duration::from_secs(10);

/// Shows `progress` until it is dropped.
pub struct Shown {
    bar: Option<ProgressBar>,
    _task: Option<AbortOnDropHandle<()>>,
}

impl Shown {
    /// Starts to show it; `quiet` shows nothing. Must be called within a runtime.
    pub fn start(progress: &Arc<Progress>, quiet: bool) -> Self {
        if quiet {
            return Self { bar: None, _task: None };
        }
        let progress = Arc::clone(progress);
        if stderr().is_terminal() {
            let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
            let task = tokio::spawn(draw(progress, bar.clone()));
            return Self { bar: Some(bar), _task: Some(AbortOnDropHandle::new(task)) };
        }
        Self { bar: None, _task: Some(AbortOnDropHandle::new(tokio::spawn(write_lines(progress)))) }
    }
}

impl Drop for Shown {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

async fn draw(progress: Arc<Progress>, bar: ProgressBar) {
    let style = |template| ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
    let known = style("{msg} {wide_bar} {binary_bytes}/{binary_total_bytes} {binary_bytes_per_sec} {eta}");
    let unknown = style("{msg} {spinner} {binary_bytes} {binary_bytes_per_sec}");
    loop {
        let now = progress.snapshot();
        match now.total {
            Some(total) => {
                bar.set_length(total);
                bar.set_style(known.clone());
            }
            None => bar.set_style(unknown.clone()),
        }
        bar.set_message(stage(now.stage));
        bar.set_position(now.received);
        if now.stage == Stage::Connecting {
            // What was there before says nothing of how fast the rest comes.
            bar.reset_eta();
        }
        tokio::time::sleep(TICK).await;
    }
}

async fn write_lines(progress: Arc<Progress>) {
    let (mut started, mut before, mut told) = (Instant::now(), 0, Instant::now());
    loop {
        let now = progress.snapshot();
        if now.stage == Stage::Connecting {
            (started, before) = (Instant::now(), now.received);
        }
        if told.elapsed() >= LINES {
            eprintln!("{}", line(&now, before, started.elapsed()));
            told = Instant::now();
        }
        tokio::time::sleep(TICK).await;
    }
}

fn stage(stage: Stage) -> &'static str {
    match stage {
        Stage::Connecting => "connecting",
        Stage::Transferring => "transferring",
        Stage::Publishing => "making durable",
    }
}

/// One line for people: how much of how much, how fast, how long still. `before` was there when it began.
fn line(now: &Snapshot, before: u64, elapsed: Duration) -> String {
    let seconds = elapsed.as_secs().max(1);
    let rate = now.received.saturating_sub(before) / seconds;
    let (name, received) = (stage(now.stage), short_size(now.received));
    match now.total {
        None => format!("{name}: {received}, {}/s", short_size(rate)),
        Some(total) => {
            let left = total.saturating_sub(now.received).checked_div(rate);
            let left = left.map_or_else(String::new, |seconds| format!(", {seconds} s left"));
            format!("{name}: {received} of {}, {}/s{left}", short_size(total), short_size(rate))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_tells_rate_and_rest() {
        let mut now = Snapshot { stage: Stage::Transferring, received: 20 << 20, total: Some(100 << 20), written: 0 };
        assert_eq!(line(&now, 0, Duration::from_secs(10)), "transferring: 20 MiB of 100 MiB, 2 MiB/s, 40 s left");
        let later = line(&now, 10 << 20, Duration::from_secs(10));
        assert_eq!(later, "transferring: 20 MiB of 100 MiB, 1 MiB/s, 80 s left", "what was there before has no rate");
        now.total = None;
        assert_eq!(line(&now, 0, Duration::from_secs(10)), "transferring: 20 MiB, 2 MiB/s");
    }
}
