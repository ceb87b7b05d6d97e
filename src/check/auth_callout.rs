//! Knows: what `weir check` looks at of the auth callout. Never: how a token is made or verified.

use std::time::Duration;

use async_nats::ConnectOptions;

use super::{NO_LOG, NO_ROOM, Probed, Report, Target};
use crate::auth_cli::with_own_secret;
use crate::config::Config;
use crate::tokens::{self, Wish};

/// As long as nats-server waits for the callout, and a little more.
const LOGIN_TIMEOUT: Duration = Duration::from_secs(6);
/// No application has a user of this name.
const TRIAL_USER: &str = "=weir-check";

/// The callout's user is apart from the others, and a token that this configuration would take is taken.
pub(super) async fn look(report: &mut Report, config: &Config, target: &Target) {
    let user = &target.auth;
    let probed = match Probed::connect(target, user).await {
        Ok(probed) => probed,
        Err(error) => {
            report.bad(format!(
                "auth callout: NATS refuses the user {:?}: {}; set nats.auth.user and WEIR_NATS_AUTH_PASSWORD, and list it in \
                 auth_users",
                user.user, error.text
            ));
            return;
        }
    };
    for subject in [NO_ROOM, NO_LOG, "_INBOX.=weir.check"] {
        match probed.may_publish(subject).await {
            Ok(false) => {}
            Ok(true) => report.bad(format!(
                "auth callout: the user {:?} may publish on {subject:?}; give it the rights of deploy/nats.conf",
                user.user
            )),
            Err(error) => report.bad(format!("the rights of {:?} cannot be tried: {error}", user.user)),
        }
    }
    if config.auth_callout.user_connection_limit > 0
        && let Err(error) = Probed::connect(target, &target.kick).await
    {
        report.bad(format!(
            "auth_callout.user_connection_limit: NATS refuses the user {:?}: {}; set nats.kick.user and WEIR_NATS_KICK_PASSWORD",
            target.kick.user, error.text
        ));
    }
    let now_s = i64::try_from(weir_nats::ambient::since_1970().as_secs()).unwrap_or(i64::MAX);
    let wish = Wish {
        user: TRIAL_USER,
        channel: None,
        algorithm: "HS256",
        key: None,
        kid: None,
        issuer: None,
        caps: None,
        now_s,
        expires_at_s: now_s.saturating_add(60),
    };
    let token = with_own_secret(config.clone()).and_then(|config| tokens::mint(&config, &wish));
    let Ok(token) = token else {
        report.good(format!(
            "auth callout: the user {:?} is there; no token can be made here to try it",
            user.user
        ));
        return;
    };
    let servers: Vec<&str> = target.url.split(',').map(str::trim).collect();
    let options = ConnectOptions::with_token(token)
        .name("weir check")
        .connection_timeout(LOGIN_TIMEOUT);
    let connected = target.options(options).connect(servers).await;
    match connected {
        Ok(_) => report.good("auth callout: a token is let in"),
        Err(error) => report.warn(format!(
            "auth callout: a token that was made here is not let in ({error}): start Weir, or set auth_callout in nats-server's \
             configuration to what `weir auth keys` prints"
        )),
    }
}
