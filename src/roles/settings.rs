//! Knows: which settings of the crates each key of the configuration becomes. Never: what a setting does.

use std::collections::{HashMap, HashSet};
use std::path::PathBuf;
use std::sync::Arc;

use weir_authz::{ChannelRegex, NamespaceRules};
use weir_edge::address::parse_network;
use weir_edge::limits::{LimitSettings, rate};
use weir_edge::outbox::OutboxLimits;
use weir_edge::rate::{Counted, Rate, Rates};
use weir_edge::room::RingLimits;
use weir_edge::settings::{
    Bounds, ClientSettings, DataFormat, DoorSettings, EdgeSettings, Namespace,
};
use weir_history::Window;
use weir_history::archive::OldestMs;
use weir_nats::RoomName;
use weir_nats::ambient::now_ms;
use weir_nats::connect::{ConnectConfig, Credentials, LinkTimes, NatsTls};
use weir_nats::publish::PublishLimits;
use weir_nats::stream::{LogConfig, Storage};

use crate::config::{self, Config, OPERATOR};

/// Below which age the archive keeps a room's messages; `None` if every namespace keeps all.
pub(super) fn oldest_ms(config: &Config) -> Option<OldestMs> {
    let channel = &config.channel;
    let of = |options: &config::Namespace| {
        let ttl = options.archive_ttl;
        (!ttl.is_zero()).then(|| i64::try_from(ttl.as_millis()).unwrap_or(i64::MAX))
    };
    let without = of(&channel.without_namespace);
    let named: HashMap<String, i64> = channel
        .namespaces
        .iter()
        .filter_map(|(name, options)| Some((name.clone(), of(options)?)))
        .collect();
    if without.is_none() && named.is_empty() {
        return None;
    }
    Some(Arc::new(move |room: &RoomName| {
        let ttl_ms = match room.namespace() {
            Some(name) => named.get(name).copied(),
            None => without,
        };
        Some(now_ms().saturating_sub(ttl_ms?))
    }))
}

pub(crate) fn connect_config(config: &Config) -> ConnectConfig {
    ConnectConfig {
        url: config.nats.url.clone(),
        live: credentials(&config.nats.live),
        reads: credentials(&config.nats.reads),
        door: credentials(&config.nats.door),
        tls: nats_tls(&config.nats),
        times: LinkTimes {
            ping_interval: config.nats.ping_interval,
            request_timeout: config.nats.request_timeout,
        },
    }
}

/// How NATS is trusted.
pub(crate) fn nats_tls(nats: &config::Nats) -> Option<NatsTls> {
    let file = |path: &PathBuf| (!path.as_os_str().is_empty()).then(|| path.clone());
    nats.tls.then(|| NatsTls {
        ca_file: file(&nats.tls_ca_file),
        identity: file(&nats.tls_cert_file).zip(file(&nats.tls_key_file)),
    })
}

/// `None` without a password.
pub(super) fn kick_credentials(config: &Config) -> Option<Credentials> {
    let kick = &config.nats.kick;
    let is_set = config.auth_callout.enabled && !kick.password.is_empty();
    is_set.then(|| credentials(kick))
}

pub(super) fn credentials(user: &config::NatsUser) -> Credentials {
    Credentials {
        user: user.user.clone(),
        password: user.password.expose().to_owned(),
    }
}

pub(super) fn publish_limits(config: &Config) -> PublishLimits {
    PublishLimits {
        queue_max_bytes: config.publish.queue_max_size,
        expected_wait_max: config.publish.queue_max_wait,
        batch_max_messages: usize::from(config.publish.batch_size),
    }
}

pub(super) fn log_config(log: &config::LogOptions) -> LogConfig {
    LogConfig {
        name: log.name.clone(),
        slots: log.slots,
        max_age: log.max_age,
        max_bytes: log.max_bytes,
        max_messages: log.max_messages,
        storage: match log.storage {
            config::Storage::File => Storage::File,
            config::Storage::Memory => Storage::Memory,
        },
        replicas: log.replicas,
        duplicate_window: log.duplicate_window,
    }
}

pub(super) fn edge_settings(config: &Config) -> EdgeSettings {
    let client = &config.client;
    let namespaces: HashMap<String, Namespace> = config
        .channel
        .namespaces
        .iter()
        .map(|(name, options)| (name.clone(), namespace(options)))
        .collect();
    let bounds = Bounds::default();
    EdgeSettings {
        client: ClientSettings {
            allowed_origins: client.allowed_origins.clone(),
            insecure: client.insecure,
            allow_anonymous_connect_without_token: client.allow_anonymous_connect_without_token,
            disallow_anonymous_connection_tokens: client.disallow_anonymous_connection_tokens,
            channel_limit: client.channel_limit as usize,
            connection_limit: client.connection_limit as usize,
            connection_rate_limit_per_s: client.connection_rate_limit,
            user_connection_limit: client.user_connection_limit as usize,
            queue_max_size_bytes: client.queue_max_size,
            message_size_limit_bytes: config.websocket.message_size_limit,
            ping_interval: client.ping_interval,
            pong_timeout: client.pong_timeout,
            stale_close_delay: client.stale_close_delay,
            expired_close_delay: client.expired_close_delay,
            expired_sub_close_delay: client.expired_sub_close_delay,
            history_max_publication_limit: client.history_max_publication_limit,
            recovery_max_publication_limit: client.recovery_max_publication_limit,
        },
        without_namespace: Some(namespace(&config.channel.without_namespace)),
        namespaces,
        rpc_timeout: config.rpc.timeout,
        door: DoorSettings {
            message_size_limit_bytes: config.door.message_size_limit,
            rate: Rate {
                per_s: config.door.rate_limit,
                burst: config.door.burst,
            },
            users_max: config.door.users_limit as usize,
            in_flight_max: config.door.in_flight_limit as usize,
            operators: vec![OPERATOR.to_owned()],
            static_users: config.auth_callout.enabled.then(|| static_users(config)),
        },
        shutdown_spread: config.shutdown.spread,
        limits: limit_settings(config),
        bounds: Bounds {
            rooms_max: config.room.limit as usize,
            ring: RingLimits {
                ring_max_messages: config.room.ring_size as usize,
                ring_max_bytes: config.room.ring_max_size,
            },
            room_idle: config.room.idle_timeout,
            sweep_interval: config.room.sweep_interval,
            slow_commands_max: config.rpc.in_flight_limit as usize,
            reply_max_bytes: u32::try_from(config.history.page_max_size).unwrap_or(u32::MAX),
            pushes_max_bytes: OutboxLimits::PUSHES_MAX_BYTES.min(client.queue_max_size),
            ..bounds
        },
    }
}

fn limit_settings(config: &Config) -> LimitSettings {
    let client = &config.client;
    let limit = &client.rate_limit;
    let commands = rate(client.command_rate_limit, client.command_burst);
    let trusted = config.http_server.trusted_proxies.iter();
    LimitSettings {
        connection: rates(&limit.connection).and(Counted::Commands, commands),
        user: rates(&limit.user),
        address: rates(&limit.address),
        user_channels_max: client.user_channel_limit as usize,
        address_connections_max: client.address_connection_limit as usize,
        address_half_open_max: client.address_half_open_limit as usize,
        users_max: limit.users_limit as usize,
        addresses_max: limit.addresses_limit as usize,
        trusted_proxies: trusted
            .map(|text| parse_network(text).expect("the configuration was checked"))
            .collect(),
    }
}

fn rates(limit: &config::RateLimit) -> Rates {
    let of = |limit: config::Limit| rate(limit.per_second, limit.burst);
    Rates::only(Counted::Connects, of(limit.connect))
        .and(Counted::Commands, of(limit.command))
        .and(Counted::Messages, of(limit.publish))
        .and(Counted::Bytes, of(limit.bytes))
        .and(Counted::Reads, of(limit.read))
}

/// Every user that nats-server knows without asking.
pub(crate) fn static_users(config: &Config) -> HashSet<String> {
    let nats = &config.nats;
    let own = [
        &nats.live,
        &nats.reads,
        &nats.door,
        &nats.system,
        &nats.auth,
        &nats.kick,
    ];
    let own = own.iter().map(|user| user.user.clone());
    let listed = config.auth_callout.static_users.iter().cloned();
    own.chain(listed).chain([OPERATOR.to_owned()]).collect()
}

/// The rules of every namespace; `None` is of rooms without one.
pub(crate) fn all_rules(config: &Config) -> Vec<(Option<String>, NamespaceRules)> {
    let channel = &config.channel;
    let named = channel.namespaces.iter();
    let named = named.map(|(name, options)| (Some(name.clone()), namespace(options).rules));
    let without = (None, namespace(&channel.without_namespace).rules);
    [without].into_iter().chain(named).collect()
}

fn namespace(options: &config::Namespace) -> Namespace {
    Namespace {
        rules: NamespaceRules {
            allow_subscribe_for_client: options.allow_subscribe_for_client,
            allow_subscribe_for_anonymous: options.allow_subscribe_for_anonymous,
            allow_publish_for_subscriber: options.allow_publish_for_subscriber,
            allow_publish_for_client: options.allow_publish_for_client,
            allow_publish_for_anonymous: options.allow_publish_for_anonymous,
            allow_history_for_subscriber: options.allow_history_for_subscriber,
            allow_history_for_client: options.allow_history_for_client,
            allow_history_for_anonymous: options.allow_history_for_anonymous,
            allow_user_limited_channels: options.allow_user_limited_channels,
            channel_regex: (!options.channel_regex.is_empty()).then(|| {
                ChannelRegex::parse(&options.channel_regex).expect("the configuration was checked")
            }),
            // Nobody can ask: presence is not in this version.
            ..NamespaceRules::default()
        },
        log: options.log.clone(),
        stored: options.history_size != 0,
        window: Window {
            size: u64::try_from(options.history_size).ok(),
            // What the archive lets go is outside, whatever a stream still has.
            ttl: [options.history_ttl, options.archive_ttl]
                .into_iter()
                .filter(|ttl| !ttl.is_zero())
                .min(),
        },
        force_recovery: options.force_recovery,
        allow_recovery: options.allow_recovery,
        force_positioning: options.force_positioning,
        allow_positioning: options.allow_positioning,
        data_format: match options.publication_data_format {
            config::DataFormat::Json => DataFormat::Json,
            config::DataFormat::JsonObject => DataFormat::JsonObject,
            config::DataFormat::Binary => DataFormat::Binary,
        },
        rates: rates(&options.rate_limit),
        rooms_max: options.room_limit as usize,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::config::Sources;

    #[test]
    fn keys_reach_what_they_are_about() {
        let text = r#"
            [client]
            allowed_origins = ["https://*.example.com"]
            disallow_anonymous_connection_tokens = true
            connection_limit = 11
            connection_rate_limit = 12
            user_connection_limit = 13
            command_rate_limit = 14
            command_burst = 15
            user_channel_limit = 51
            address_connection_limit = 52
            address_half_open_limit = 53
            [client.rate_limit]
            users_limit = 54
            addresses_limit = 55
            [client.rate_limit.connection]
            publish = 31
            publish_burst = 41
            bytes = 70032
            bytes_burst = 70042
            read = 33
            [client.rate_limit.user]
            connect = 34
            command = 35
            publish = 36
            bytes = 70037
            read = 38
            [client.rate_limit.address]
            connect = 44
            command = 45
            publish = 46
            bytes = 70047
            read = 48
            [http_server]
            trusted_proxies = ["10.0.0.0/8", "2001:db8::1"]
            [[channel.namespaces]]
            name = "chat"
            history_size = 10000
            history_ttl = "16s"
            archive_ttl = "90d"
            [[channel.namespaces]]
            name = "notes"
            history_size = -1
            archive_ttl = "30m"
            room_limit = 65
            [channel.namespaces.rate_limit]
            command = 61
            publish = 62
            bytes = 70063
            read = 64
            read_burst = 74
            [publish]
            queue_max_size = 1048577
            queue_max_wait = "17ms"
            batch_size = 18
            [history]
            page_max_size = 65537
            [rpc]
            timeout = "19ms"
            in_flight_limit = 20
            [door]
            rate_limit = 21
            burst = 22
            in_flight_limit = 23
            users_limit = 24
            [nats]
            request_timeout = "250ms"
            ping_interval = "26s"
            tls = true
            tls_ca_file = "ca.pem"
            tls_cert_file = "weir.pem"
            tls_key_file = "weir.key"
            [shutdown]
            spread = "27s"
        "#;
        let file = Some(("weir.toml".to_owned(), text.to_owned()));
        let sources = Sources {
            file,
            ..Sources::default()
        };
        let config = Config::load(sources).unwrap().config;
        let seconds = Duration::from_secs;

        let settings = edge_settings(&config);
        let client = &settings.client;
        assert_eq!(client.allowed_origins, ["https://*.example.com"]);
        assert!(client.disallow_anonymous_connection_tokens);
        assert_eq!(client.connection_limit, 11);
        assert_eq!(client.connection_rate_limit_per_s, 12);
        assert_eq!(client.user_connection_limit, 13);
        let rate = |per_s, burst| Rate { per_s, burst };
        let limits = &settings.limits;
        let of = |rates: &Rates| Counted::ALL.map(|counted| rates.of(counted));
        let off = rate(0, 0);
        let connection = [
            off,
            rate(14, 15),
            rate(31, 41),
            rate(70_032, 70_042),
            rate(33, 33),
        ];
        assert_eq!(of(&limits.connection), connection);
        let user = [34, 35, 36, 70_037, 38].map(|n| rate(n, n));
        assert_eq!(of(&limits.user), user);
        let address = [44, 45, 46, 70_047, 48].map(|n| rate(n, n));
        assert_eq!(of(&limits.address), address);
        assert_eq!(limits.user_channels_max, 51);
        assert_eq!(limits.address_connections_max, 52);
        assert_eq!(limits.address_half_open_max, 53);
        assert_eq!((limits.users_max, limits.addresses_max), (54, 55));
        assert_eq!(limits.trusted_proxies.len(), 2);
        let notes = &settings.namespaces["notes"];
        let namespace = [
            off,
            rate(61, 61),
            rate(62, 62),
            rate(70_063, 70_063),
            rate(64, 74),
        ];
        assert_eq!((of(&notes.rates), notes.rooms_max), (namespace, 65));
        let chat = settings.namespaces["chat"].window;
        assert_eq!((chat.size, chat.ttl), (Some(10_000), Some(seconds(16))));
        let notes = settings.namespaces["notes"].window;
        assert_eq!((notes.size, notes.ttl), (None, Some(seconds(1_800))));
        let oldest_ms = oldest_ms(&config).unwrap();
        let age_ms = |room: &str| {
            let oldest = oldest_ms(&RoomName::parse(room).unwrap());
            oldest.map(|oldest| now_ms() - oldest)
        };
        assert!(age_ms("notes:a").is_some_and(|age| (1_800_000..1_805_000).contains(&age)));
        assert!(age_ms("chat:a").is_some_and(|age| age >= 90 * 86_400_000));
        assert_eq!(age_ms("a"), None);
        assert_eq!(settings.bounds.reply_max_bytes, 65_537);
        assert_eq!(settings.rpc_timeout, Duration::from_millis(19));
        assert_eq!(settings.bounds.slow_commands_max, 20);
        assert_eq!(settings.door.rate, rate(21, 22));
        assert_eq!(settings.door.in_flight_max, 23);
        assert_eq!(settings.door.users_max, 24);
        assert_eq!(settings.shutdown_spread, seconds(27));

        let limits = PublishLimits {
            queue_max_bytes: 1_048_577,
            expected_wait_max: Duration::from_millis(17),
            batch_max_messages: 18,
        };
        assert_eq!(publish_limits(&config), limits);
        let times = LinkTimes {
            ping_interval: seconds(26),
            request_timeout: Duration::from_millis(250),
        };
        assert_eq!(connect_config(&config).times, times);
        let tls = NatsTls {
            ca_file: Some("ca.pem".into()),
            identity: Some(("weir.pem".into(), "weir.key".into())),
        };
        assert_eq!(connect_config(&config).tls, Some(tls));
    }

    #[test]
    fn nothing_is_limited_by_default_and_the_hardened_file_has_its_figures() {
        let limits = edge_settings(&Config::default()).limits;
        let all = [limits.connection, limits.user, limits.address];
        assert!(all.iter().all(Rates::are_off));
        let text = include_str!("../../deploy/hardened.toml");
        let file = Some(("hardened.toml".to_owned(), text.to_owned()));
        let loaded = Config::load(Sources {
            file,
            ..Sources::default()
        });
        let settings = edge_settings(&loaded.unwrap().config);
        let (client, limits) = (&settings.client, &settings.limits);
        assert_eq!(limits.connection.of(Counted::Commands), rate(50, 100));
        let all = [limits.connection, limits.user, limits.address];
        for rates in &all {
            // Only the connects of a connection have no figure.
            let off = Counted::ALL.iter().filter(|c| rates.of(**c).per_s == 0);
            assert_eq!(off.count(), usize::from(rates == &limits.connection));
        }
        assert_eq!(client.channel_limit, 128);
        assert_eq!(client.user_connection_limit, 20);
        assert_eq!(limits.address_connections_max, 200);
        assert_eq!(limits.address_half_open_max, 20);
        assert_eq!(client.stale_close_delay, Duration::from_secs(5));
    }

    #[test]
    fn defaults_are_those_of_the_parts() {
        let config = Config::default();
        assert_eq!(publish_limits(&config), PublishLimits::default());
        assert_eq!(connect_config(&config).times, LinkTimes::default());
    }
}
