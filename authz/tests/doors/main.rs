//! One policy, two doors: what a token may do over NATS, a socket with it may do, and the other way round
//! for all that a subject can say.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod cost;
#[path = "../../../tests/support/doors.rs"]
mod doors;
#[path = "../../../tests/support/figures.rs"]
mod figures;
#[path = "../../../tests/support/rng.rs"]
mod rng;

use weir_authz::Grants;
use weir_authz::render::render;

use doors::{ACTIONS, World, allows, subjects};
use rng::Rng;

#[test]
fn nats_permissions_never_allow_more_than_a_socket_and_less_only_where_no_subject_says_it() {
    let mut rng = Rng::new(11);
    let (mut cells, mut allowed, mut only_sockets) = (0, 0, 0);
    for _ in 0..4_000 {
        let namespaces = World::namespaces(&mut rng);
        let world = World::new(&mut rng, namespaces);
        let all = world.namespaces.iter().map(|(name, rules)| (*name, rules));
        let permissions = render(&Grants::of_native(&world.claims), all);
        for room in &world.rooms {
            for action in ACTIONS {
                let socket = world.socket_may(action, room);
                for (publish, subject) in subjects(&world.claims.user, action, room) {
                    let native = allows(&permissions, publish, &subject);
                    let case = format!(
                        "{action:?} {room:?} as {:?}\n{permissions:?}\n{:?}\n{:?}",
                        world.claims.user,
                        world.claims.capabilities,
                        world.rules(room)
                    );
                    assert!(
                        socket || !native,
                        "NATS allows what a socket may not: {case}"
                    );
                    if world.is_for_sockets(room) {
                        assert!(!native, "by a name or pattern only: {case}");
                        only_sockets += u32::from(socket);
                    } else {
                        assert_eq!(native, socket, "{case}");
                    }
                    cells += 1;
                    allowed += u32::from(native);
                }
            }
        }
    }
    // A generator that allows nothing, or everything, would show nothing.
    assert!(
        cells > 200_000 && allowed > cells / 10 && allowed < cells / 2,
        "{allowed} of {cells}"
    );
    assert!(only_sockets > 1_000, "{only_sockets}");
}
