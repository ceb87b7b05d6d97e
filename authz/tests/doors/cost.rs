//! Knows: what it costs to ask whether somebody may publish, which a socket does at each publish. Never: what is right.

use weir_authz::capability::{Actions, CAPABILITY_PLACES_MAX, Capability, Scope};
use weir_authz::{Action, Claims, Grants, NamespaceRules};
use weir_nats::RoomName;

use crate::figures::figure;

const BATCH: u32 = 10_000;
const BATCHES_MAX: u32 = 10_000;
const LEAST_NS: f64 = 1e8;
/// A publish takes tens of µs, so that this is for builds without optimisation on a busy machine.
const SLOW_NS: f64 = 1_000_000.0;

#[test]
fn what_a_permission_check_costs() {
    let room = RoomName::parse("plant:hall-3").unwrap();
    let mut claims = Claims::anonymous();
    claims.user = "ann".to_owned();
    let open = NamespaceRules {
        allow_publish_for_client: true,
        ..NamespaceRules::default()
    };
    let by_rule = cost_ns(&Grants::of(&claims, false), &room, &open);
    let mut capability = |room: RoomName| {
        let actions = Actions::NONE.and(Action::Publish);
        let scope = Scope::Room(room);
        claims.capabilities.insert(0, Capability { scope, actions });
        Grants::of(&claims, false)
    };
    let closed = NamespaceRules::default();
    let by_one = cost_ns(&capability(room.clone()), &room, &closed);
    for nth in 1..CAPABILITY_PLACES_MAX {
        capability(RoomName::parse(&format!("plant:hall-{}", 1_000 + nth)).unwrap());
    }
    // The last of as many as a token may have.
    let by_last = cost_ns(&Grants::of(&claims, false), &room, &closed);
    figure!(
        "a permission check takes {by_rule:.0} ns of CPU by a namespace's option, {by_one:.0} ns by a capability, \
         {by_last:.0} ns by the last of {CAPABILITY_PLACES_MAX}"
    );
    assert!(by_last < SLOW_NS);
}

fn cost_ns(grants: &Grants, room: &RoomName, rules: &NamespaceRules) -> f64 {
    let mut best_ns = f64::INFINITY;
    for _ in 0..3 {
        let (start_ns, mut rounds, mut took_ns) = (cpu_ns(), 0, 0.0);
        // The kernel counts in steps of milliseconds.
        while took_ns < LEAST_NS && rounds < BATCHES_MAX * BATCH {
            for _ in 0..BATCH {
                let permit = grants.check(Action::Publish, std::hint::black_box(room), rules, true);
                assert!(permit.is_ok());
            }
            rounds += BATCH;
            took_ns = cpu_ns() - start_ns;
        }
        best_ns = best_ns.min(took_ns / f64::from(rounds));
    }
    best_ns
}

/// Time that this thread was on a CPU, which what else runs here does not change. Linux only.
fn cpu_ns() -> f64 {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    text.split(' ').next().unwrap().parse().unwrap()
}
