//! Knows: room → partition → stream slot, by hashing. Never: NATS, names of streams.

/// Partitions of every log. Fixed for life: it is part of every stored subject.
pub const PARTITIONS: u8 = 64;

/// The partition of a room from its two subject tokens: FNV-1a (64 bit) over `ns`, `.`, `id`,
/// folded, modulo [`PARTITIONS`]. Stable for ever; a change would move every room.
#[must_use]
pub fn partition_of(ns_token: &str, id_token: &str) -> u8 {
    let mut hash = fnv1a(FNV_OFFSET, ns_token.as_bytes());
    hash = fnv1a(hash, b".");
    hash = fnv1a(hash, id_token.as_bytes());
    let folded = hash ^ (hash >> 32);
    u8::try_from(folded % u64::from(PARTITIONS)).expect("a remainder by 64 fits")
}

/// The slot that keeps a partition, of `slots` many: rendezvous (highest random weight) hashing
/// (Thaler and Ravishankar, 1998), so that one more slot takes about 1/N of the partitions and
/// moves no other.
///
/// # Panics
/// When `slots` is 0.
#[must_use]
pub fn slot_of(log: &str, partition: u8, slots: u16) -> u16 {
    (0..slots)
        .max_by_key(|slot| {
            let mut hash = fnv1a(FNV_OFFSET, log.as_bytes());
            hash = fnv1a(hash, &[b'/', partition]);
            hash = fnv1a(hash, &slot.to_be_bytes());
            mix(hash)
        })
        .expect("a log has at least one slot")
}

/// The member that something belongs to, by the same hashing: one more member takes its share and
/// moves nothing else. `None` if there are no members.
#[must_use]
pub fn owner_of<'a>(what: &str, members: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    members.into_iter().max_by_key(|member| {
        let hash = fnv1a(FNV_OFFSET, what.as_bytes());
        let hash = mix(fnv1a(fnv1a(hash, b"/"), member.as_bytes()));
        (hash, *member)
    })
}

const FNV_OFFSET: u64 = 0xcbf2_9ce4_8422_2325;

fn fnv1a(mut hash: u64, bytes: &[u8]) -> u64 {
    for byte in bytes {
        hash ^= u64::from(*byte);
        hash = hash.wrapping_mul(0x0000_0100_0000_01b3);
    }
    hash
}

/// The finalizer of MurmurHash3: FNV alone leaves the high bits too alike to compare.
fn mix(mut hash: u64) -> u64 {
    hash ^= hash >> 33;
    hash = hash.wrapping_mul(0xff51_afd7_ed55_8ccd);
    hash ^= hash >> 33;
    hash = hash.wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    hash ^ (hash >> 33)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_member_that_goes_leaves_only_its_own_to_the_others() {
        let members = ["a", "b", "c", "d"];
        let streams: Vec<String> = (0..400).map(|nth| format!("ROOMS_{nth}")).collect();
        let before = |what: &str| owner_of(what, members).unwrap();
        let after = |what: &str| owner_of(what, members.into_iter().filter(|m| *m != "c")).unwrap();
        for what in &streams {
            let (before, after) = (before(what), after(what));
            assert!(
                before == after || before == "c",
                "{what}: {before} to {after}"
            );
        }
        for member in members {
            let share = streams.iter().filter(|what| before(what) == member).count();
            assert!((60..=140).contains(&share), "{member} has {share} of 400");
        }
        assert_eq!(owner_of("x", []), None);
    }

    #[test]
    fn partitions_are_stable_for_ever() {
        assert_eq!(partition_of("chat", "lobby"), 20);
        assert_eq!(partition_of("_", "lobby"), 31);
    }

    #[test]
    fn one_more_slot_moves_its_share_and_no_other() {
        for slots in 1..8_u16 {
            let moved = (0..PARTITIONS)
                .filter(|p| slot_of("rooms", *p, slots) != slot_of("rooms", *p, slots + 1));
            let moved: Vec<u8> = moved.collect();
            assert!(
                moved
                    .iter()
                    .all(|p| slot_of("rooms", *p, slots + 1) == slots)
            );
            assert!(moved.len() <= usize::from(PARTITIONS));
        }
    }
}
