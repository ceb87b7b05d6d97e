//! Knows: the same property as in the test `doors`, with a real nats-server as the judge. Never: roles that people
//! would use (`roles`).

use crate::doors::{ACTIONS, World, subjects};
use crate::figures::figure;
use crate::length::either;
use crate::raw::Raw;
use crate::rng::Rng;
use crate::server::{Server, token_of};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_nats_server_allows_a_socket_may_do_and_the_other_way_round_but_for_names_and_patterns()
 {
    let server = Server::start().await;
    let mut rng = Rng::new(12);
    let (mut cells, mut allowed) = (0, 0);
    for _ in 0..either(6, 30) {
        let namespaces = World::namespaces(&mut rng);
        let owned = |name: &Option<&str>| name.map(str::to_owned);
        let rules = namespaces
            .iter()
            .map(|(name, rules)| (owned(name), rules.clone()));
        let callout = server.callout(rules.collect()).await;
        for _ in 0..either(7, 20) {
            let world = World::new(&mut rng, namespaces.clone());
            let mut client = Raw::login(server.port, &token_of(&world.claims))
                .await
                .unwrap();
            for room in &world.rooms {
                for action in ACTIONS {
                    let socket = world.socket_may(action, room);
                    for (publish, subject) in subjects(&world.claims.user, action, room) {
                        let native = if publish {
                            client.may_publish(&subject).await
                        } else {
                            client.may_hear(&subject).await
                        };
                        let case = format!(
                            "{subject} as {:?} {:?}",
                            world.claims.user, world.claims.capabilities
                        );
                        assert!(
                            socket || !native,
                            "NATS allows what a socket may not: {case}"
                        );
                        if !world.is_for_sockets(action, room) {
                            assert_eq!(native, socket, "{case}");
                        }
                        cells += 1;
                        allowed += u32::from(native);
                    }
                }
            }
        }
        callout.stop().await;
    }
    assert!(
        cells >= 2_000 && allowed > cells / 10 && allowed < cells / 2,
        "{allowed} of {cells}"
    );
    figure!("{cells} cells of made-up tokens on a real nats-server, {allowed} of them allowed");
}
