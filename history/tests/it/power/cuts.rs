//! Knows: what an append said is durable is in the file after a power cut, and would not be with
//! `synchronous = NORMAL`. Never: where messages come from.

use std::collections::HashMap;
use std::path::Path;
use std::time::{Duration, Instant};

use weir_history::held::Held;
use weir_history::sqlite::Synchronous;
use weir_nats::Seq;

use crate::figures::figure;
use crate::power::archived::{self, Archived};
use crate::power::below;
use crate::power::disk::{Cut, Disk};
use crate::power::process::{Process, Said, row};
use crate::rig::either;

/// Room for every row of a run.
const DISK_MIB: u64 = 1_024;
/// The power goes after so many commits and,
const COMMITS_MAX: u64 = 40;
/// every second time, within this after them: in the middle of anything.
const AFTER_MS: u64 = 100;
/// Every fifth time it goes within this after the process was started: while it makes or opens the
/// file.
const OPEN_WITHIN_MS: u64 = 60;
/// A cut with `synchronous = NORMAL` loses nothing if it comes right after a checkpoint. So many in a
/// row that do are none of chance.
const HARMLESS_CUTS_MAX: u64 = 20;

/// What a run of cuts came to.
#[derive(Debug, Default)]
struct Tally {
    cuts: u64,
    commits: u64,
    acknowledged: u64,
    missing: u64,
    cuts_with_loss: u64,
}

/// Cuts the power of a process under load until `enough`, and counts after each cut what is not in
/// the file of what that process was told is durable, before anything else is archived.
fn cut_and_count(synchronous: Synchronous, enough: impl Fn(&Tally) -> bool) -> Option<Tally> {
    let disk = Disk::new(DISK_MIB)?;
    let start = Instant::now();
    let file = disk.path().join("archive.db");
    let mut tally = Tally::default();
    let mut durable: HashMap<String, Held> = HashMap::new();
    while !enough(&tally) {
        let nth = tally.cuts;
        let cut = if nth % 4 < 2 { Cut::Machine } else { Cut::Disk };
        let switch = disk.switch(cut);
        let process = Process::appending(&file, synchronous);
        // No condition to wait for: the point is that it may be anywhere.
        let sleep = |ms| std::thread::sleep(Duration::from_millis(below(ms)));
        if nth % 5 == 0 {
            sleep(OPEN_WITHIN_MS);
        } else {
            process.until_commits(1 + below(COMMITS_MAX));
            if nth % 2 == 0 {
                sleep(AFTER_MS);
            }
        }
        let said = process.said();
        switch.press();
        if synchronous == Synchronous::Full {
            // It lives on for as long as it can, and finds out.
            process.until_refused();
        }
        let errors = process.kill().errors;
        let said = Said { errors, ..said };
        disk.start(cut);
        count(&mut tally, &mut durable, &said, &archived::read(&file));
    }
    let took = start.elapsed();
    figure!("synchronous = {synchronous:?}: {tally:?} in {took:.1?}");
    goes_on(&file, synchronous, &mut durable);
    Some(tally)
}

fn count(
    tally: &mut Tally,
    durable: &mut HashMap<String, Held>,
    said: &Said,
    found: &HashMap<String, Archived>,
) {
    tally.cuts += 1;
    tally.commits += said.commits;
    for (stream, held) in &said.held {
        tally.acknowledged += rows_in(held);
        let all = durable.entry(stream.clone()).or_default();
        for (from, to) in held.ranges() {
            all.add(Seq::new(*from), Seq::new(*to));
        }
    }
    for error in &said.errors {
        let of_the_disk = [
            "disk I/O error",
            "unable to open",
            "its disk cannot be read",
        ];
        let says = of_the_disk.iter().any(|text| error.contains(text));
        assert!(says, "{error}");
    }
    let nothing = Archived::default();
    let missing: u64 = durable
        .iter()
        .map(|(stream, held)| found.get(stream).unwrap_or(&nothing).missing(held))
        .sum();
    tally.missing += missing;
    tally.cuts_with_loss += u64::from(missing > 0);
    for (stream, archived) in found {
        // Whatever is lost, rows and what they prove are lost together, and no row is torn.
        assert_eq!(archived.ranges(), archived.held, "{stream}");
        for (seq, found) in &archived.rows {
            assert_eq!(*found, row(stream, *seq));
        }
        // What was lost is not asked for again.
        durable.insert(stream.clone(), archived.held.clone());
    }
    durable.retain(|stream, _| found.contains_key(stream));
}

/// After all cuts: the file is written on, and nothing is missing or doubled.
fn goes_on(file: &Path, synchronous: Synchronous, durable: &mut HashMap<String, Held>) {
    let process = Process::appending(file, synchronous);
    process.until_commits(1);
    let said = process.kill();
    let mut tally = Tally::default();
    count(&mut tally, durable, &said, &archived::read(file));
    assert_eq!(tally.missing, 0, "a killed process loses nothing");
    for (stream, held) in durable {
        assert_eq!(held.ranges().len(), 1, "{stream}");
        assert_eq!(held.ranges()[0].0, 1, "{stream}");
    }
}

fn rows_in(held: &Held) -> u64 {
    held.ranges().iter().map(|(from, to)| to - from + 1).sum()
}

#[test]
fn no_acknowledged_row_is_gone_after_a_power_cut() {
    let cuts = either(5, 20);
    let Some(tally) = cut_and_count(Synchronous::Full, |tally| tally.cuts >= cuts) else {
        return;
    };
    assert!(tally.commits >= cuts * 5, "it was under load: {tally:?}");
    assert_eq!((tally.cuts, tally.missing), (cuts, 0), "{tally:?}");
}

#[test]
fn with_synchronous_normal_the_same_power_cuts_lose_rows() {
    let cuts = either(3, 20);
    let enough = |tally: &Tally| {
        let is_shown = tally.cuts >= cuts && tally.missing > 0;
        is_shown || tally.cuts >= cuts + HARMLESS_CUTS_MAX
    };
    let Some(tally) = cut_and_count(Synchronous::Normal, enough) else {
        return;
    };
    assert!(
        tally.missing > 0,
        "this disk loses nothing, so no test on it proves anything: {tally:?}"
    );
}
