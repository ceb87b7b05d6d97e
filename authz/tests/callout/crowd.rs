//! Knows: how many connections one user may have at NATS and MQTT together, and that only the newest beyond it go. Never:
//! who is let in (`logins`).

use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::json;
use tokio_util::sync::CancellationToken;
use weir_nats::callout::UserLimit;
use weir_nats::connections::Connections;
use weir_nats::figures::Counter;

use crate::figures::figure;
use crate::mqtt::Mqtt;
use crate::raw::Raw;
use crate::roles::closed;
use crate::server::{PATIENCE, Server, token, user};

const MAX_CONNECTIONS: usize = 3;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_newest_connections_of_a_user_who_has_too_many_are_ended() {
    let server = Server::start().await;
    let callout = server.callout(closed()).await;
    let links = server.links();
    let connections = Connections::connect(&links, &user("weir_kick")).await;
    let connections = connections.unwrap();
    // As two instances do.
    let (stop, kicked) = (CancellationToken::new(), Arc::new(Counter::default()));
    let limit = || {
        UserLimit::new(
            connections.clone(),
            "WEIR",
            MAX_CONNECTIONS,
            Arc::clone(&callout.logins),
            Arc::clone(&kicked),
        )
    };
    let limits = [limit(), limit()].map(|limit| tokio::spawn(limit.run(stop.clone())));

    // One user with several tokens, another whose name begins the same, and users of the configuration.
    let of = |user: &str, id: &str| token(user, json!({ "jti": id }));
    let login = async |token: &str| Raw::login(server.port, token).await.unwrap();
    let mut stay = Vec::new();
    for _ in 0..MAX_CONNECTIONS {
        stay.push(login(&of("bob", "1")).await);
        stay.push(login(&of("ann2", "1")).await);
        stay.push(login(&of("ann", &format!("j{}", stay.len()))).await);
    }
    let mut configured = Vec::new();
    for _ in 0..2 * MAX_CONNECTIONS {
        configured.push(server.user("bot").await.unwrap());
    }
    let start = Instant::now();
    let mut go = Vec::new();
    for id in ["1", "2", "3"] {
        go.push(login(&of("ann", id)).await);
    }
    let mut device = Mqtt::connect(server.mqtt_port, "ann:7", "ann", &of("ann", "4"))
        .await
        .ok()
        .unwrap();
    for connection in &mut go {
        connection.until_closed().await;
    }
    device.until_closed().await;
    let took = start.elapsed();
    assert!(took < PATIENCE);
    figure!(
        "of {} connections of a user who may have {MAX_CONNECTIONS}, the newest four were ended {took:.2?} after their login",
        MAX_CONNECTIONS + 4
    );
    // The server answers after it has closed; and both instances may end the same one at the same time.
    while kicked.value() < 4 {
        assert!(start.elapsed() < PATIENCE);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(kicked.value() <= 8, "{}", kicked.value());
    for connection in &mut stay {
        assert_eq!(connection.after("").await, Ok(Vec::new()), "it stays");
    }
    for client in &configured {
        client.flush().await.unwrap();
    }
    let listed = connections.list("WEIR").await.unwrap();
    let of_ann = listed
        .iter()
        .filter(|one| one.of_token().is_some_and(|(user, _)| user == "ann"));
    assert_eq!(of_ann.count(), MAX_CONNECTIONS);

    // Who has room again comes in again, and stays.
    drop(stay);
    let mut again = login(&of("ann", "1")).await;
    assert_eq!(again.after("").await, Ok(Vec::new()));
    stop.cancel();
    for limit in limits {
        limit.await.unwrap();
    }
    callout.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_list_of_several_pages_is_whole() {
    let server = Server::start().await;
    let callout = server.callout(closed()).await;
    let links = server.links();
    let connections = Connections::connect(&links, &user("weir_kick")).await;
    let connections = connections.unwrap();
    let bot = json!({"user": "bot", "pass": "bot"});
    let mut all = Vec::new();
    for _ in 0..1_100 {
        all.push(Raw::connect(server.port, &bot).await.unwrap());
    }
    all.push(
        Raw::login(server.port, &token("ann", json!({})))
            .await
            .unwrap(),
    );
    let listed = connections.list("WEIR").await.unwrap();
    let count = |user: &str| listed.iter().filter(|one| one.user == user).count();
    assert_eq!((count("bot"), count("ann:t1")), (1_100, 1));
    assert!(listed.is_sorted());
    let ann = listed.iter().find(|one| one.user == "ann:t1").unwrap();
    assert_eq!(connections.kick(ann).await, Ok(true));
    all.pop().unwrap().until_closed().await;
    assert_eq!(connections.kick(ann).await, Ok(false), "it is gone");
    assert_eq!(connections.list("NONE").await, Ok(Vec::new()));
    callout.stop().await;
}
