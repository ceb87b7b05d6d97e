//! Knows: how long a page of 50 takes, newest and deep, from the archive and from the cache.
//! Never: how either works.

use std::time::Instant;

use weir_history::archive::PageQuery;
use weir_history::{Archive, Ask, Reader, Window};
use weir_nats::{Placements, RoomName, Seq};

use crate::rows::{LOG, ROOMS, room};
use crate::usage::quantiles;

const PAGES: u64 = 2_000;
const PAGE_MESSAGES: u32 = 50;
const PAGE_MAX_BYTES: u32 = 1 << 20;

/// The newest page of each room in turn.
fn newest() -> Vec<(RoomName, Option<Seq>)> {
    (0..PAGES).map(|nth| (room(nth % ROOMS), None)).collect()
}

/// Pages anywhere in the log: a room, and an offset before which is read.
fn deep(rows: u64) -> Vec<(RoomName, Option<Seq>)> {
    let mut state = 7_u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (room(state % ROOMS), Some(Seq::new(state % rows + 1)))
    };
    (0..PAGES).map(|_| next()).collect()
}

/// What the archive alone takes.
pub(crate) async fn of_archive(archive: &Archive, kind: &str, rows: u64) {
    for (what, questions) in [("last 50", newest()), ("deep 50", deep(rows))] {
        let mut took = Vec::new();
        for (room, before) in questions {
            let query = PageQuery {
                log: LOG.into(),
                room,
                after: Seq::ZERO,
                up_to: before.unwrap_or(Seq::new(rows)),
                reverse: true,
                max_messages: PAGE_MESSAGES,
                max_bytes: PAGE_MAX_BYTES,
            };
            let began = Instant::now();
            archive.page(query).await.unwrap();
            took.push(began.elapsed());
        }
        println!("{kind}, {what}, archive alone: {}", quantiles(took));
    }
}

/// What a client's question takes by the one read path: nothing kept, then everything kept.
pub(crate) async fn of_reader(reader: &Reader, placements: &Placements, kind: &str, rows: u64) {
    let without_cache = reader.clone().with_cache(0);
    for (what, questions) in [("last 50", newest()), ("deep 50", deep(rows))] {
        let cold = ask(&without_cache, placements, &questions).await;
        println!("{kind}, {what}, cold: {cold}");
        ask(reader, placements, &questions).await;
        let (kept, read) = (&reader.metrics().cache, &reader.metrics().archive);
        let (kept_before, read_before) = (kept.value(), read.value());
        let cached = ask(reader, placements, &questions).await;
        let (kept, read) = (kept.value() - kept_before, read.value() - read_before);
        println!("{kind}, {what}, cached: {cached} ({kept} from the cache, {read} not)");
    }
}

async fn ask(
    reader: &Reader,
    placements: &Placements,
    questions: &[(RoomName, Option<Seq>)],
) -> String {
    let mut took = Vec::new();
    for (room, since) in questions {
        let ask = Ask {
            since: *since,
            reverse: true,
            ..Ask::default()
        };
        let place = placements.place(LOG, room).unwrap();
        let began = Instant::now();
        let window = Window::default();
        let page = reader.history(&place, room, ask, &window, PAGE_MESSAGES, PAGE_MAX_BYTES);
        assert!(page.await.unwrap().whole, "a page touches a hole");
        took.push(began.elapsed());
    }
    quantiles(took)
}
