//! Knows: the signed and sealed texts of the auth callout, both ways. Never: subjects, who is let in.
//!
//! They are JSON Web Tokens with an algorithm of their own, `ed25519-nkey`: a signature by the key that `iss`
//! names. What seals them is X25519 and XSalsa20-Poly1305 (xkeys).

use data_encoding::BASE64URL_NOPAD;
use nkeys::{KeyPair, XKey};
use serde::Deserialize;
use serde_json::{Value, json};

use super::keys::new_id;
use super::{Admission, CalloutKeys, Login};

const HEADER: &str = r#"{"typ":"JWT","alg":"ed25519-nkey"}"#;
/// Unlimited, in the words of a user's claims.
const NO_LIMIT: i64 = -1;

/// Why a request cannot be read, or an answer not be made. No text holds any of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum WireError {
    #[error("it is not sealed for the xkey that Weir has; both must have the same")]
    Sealed,
    #[error("the server's xkey is none")]
    ServerKey,
    #[error("it is no signed text")]
    Form,
    #[error("its claims are not those of an authorization request")]
    Claims,
    #[error("its signature is not its server's")]
    Signature,
    #[error("the answer cannot be signed")]
    Sign,
}

/// Whom an answer is for.
pub(super) struct Asker {
    server: String,
    user_key: String,
    sealed_for: Option<XKey>,
    /// It is refused whatever was shown.
    pub(super) refuse: Option<&'static str>,
}

#[derive(Deserialize)]
struct Claims {
    iss: String,
    nats: Request,
}

#[derive(Deserialize)]
struct Request {
    server_id: Server,
    user_nkey: String,
    client_info: ClientInfo,
    connect_opts: ConnectOptions,
}

#[derive(Deserialize)]
struct Server {
    id: String,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct ClientInfo {
    kind: String,
    #[serde(rename = "type")]
    protocol: String,
    mqtt_id: String,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct ConnectOptions {
    auth_token: String,
    pass: String,
}

/// Opens and reads a request; `server_key` is the one that the server says it sealed with.
pub(super) fn open(
    keys: &CalloutKeys,
    server_key: Option<&str>,
    payload: &[u8],
) -> Result<(Asker, Login), WireError> {
    let sealed_for = match server_key {
        Some(key) => Some(XKey::from_public_key(key).map_err(|_| WireError::ServerKey)?),
        None => None,
    };
    let opened = match &sealed_for {
        Some(server) => keys
            .xkey
            .open(payload, server)
            .map_err(|_| WireError::Sealed)?,
        None => payload.to_vec(),
    };
    let text = std::str::from_utf8(&opened).map_err(|_| WireError::Form)?;
    let claims = read(text)?;
    let Request {
        server_id,
        user_nkey,
        client_info,
        connect_opts,
    } = claims.nats;
    let is_mqtt = client_info.protocol == "mqtt" || !client_info.mqtt_id.is_empty();
    let login = Login {
        token: if connect_opts.auth_token.is_empty() {
            connect_opts.pass
        } else {
            connect_opts.auth_token
        },
        mqtt_client: is_mqtt.then_some(client_info.mqtt_id),
        is_client: client_info.kind == "Client",
    };
    let refuse = sealed_for
        .is_none()
        .then_some("nats-server sends tokens unsealed; set auth_callout.xkey in its configuration");
    let asker = Asker {
        server: server_id.id,
        user_key: user_nkey,
        sealed_for,
        refuse,
    };
    Ok((asker, login))
}

fn read(text: &str) -> Result<Claims, WireError> {
    let (message, signature) = text.rsplit_once('.').ok_or(WireError::Form)?;
    let (_, payload) = message.split_once('.').ok_or(WireError::Form)?;
    let decode = |part: &str| {
        BASE64URL_NOPAD
            .decode(part.as_bytes())
            .map_err(|_| WireError::Form)
    };
    let (payload, signature) = (decode(payload)?, decode(signature)?);
    let claims: Claims = serde_json::from_slice(&payload).map_err(|_| WireError::Claims)?;
    let signer = KeyPair::from_public_key(&claims.iss).map_err(|_| WireError::Signature)?;
    let is_of_server = claims.iss == claims.nats.server_id.id;
    let verified = signer.verify(message.as_bytes(), &signature);
    if is_of_server && verified.is_ok() {
        Ok(claims)
    } else {
        Err(WireError::Signature)
    }
}

/// Makes the answer, sealed if the request was.
pub(super) fn answer(
    keys: &CalloutKeys,
    asker: &Asker,
    account: &str,
    decided: Result<Admission, String>,
    now_s: i64,
) -> Result<Vec<u8>, WireError> {
    let mut nats = json!({ "type": "authorization_response", "version": 2 });
    match decided {
        Ok(admission) => {
            let user = user(keys, asker, account, &admission, now_s);
            nats["jwt"] = signed(keys, &user)?.into();
        }
        Err(reason) => nats["error"] = reason.into(),
    }
    let answer = json!({
        "jti": new_id(), "iat": now_s, "iss": keys.issuer(), "sub": asker.user_key, "aud": asker.server,
        "nats": nats,
    });
    let answer = signed(keys, &answer)?.into_bytes();
    match &asker.sealed_for {
        Some(server) => keys.xkey.seal(&answer, server).map_err(|_| WireError::Sign),
        None => Ok(answer),
    }
}

fn user(
    keys: &CalloutKeys,
    asker: &Asker,
    account: &str,
    admission: &Admission,
    now_s: i64,
) -> Value {
    let mut user = json!({
        "jti": new_id(), "iat": now_s, "iss": keys.issuer(), "sub": asker.user_key, "aud": account,
        "name": admission.name,
        "nats": {
            "type": "user", "version": 2,
            "pub": { "allow": admission.publish }, "sub": { "allow": admission.subscribe },
            "subs": NO_LIMIT, "data": NO_LIMIT, "payload": NO_LIMIT,
            "allowed_connection_types": ["STANDARD", "WEBSOCKET", "MQTT"],
        },
    });
    if let Some(expires) = admission.expires_at_s {
        user["exp"] = expires.into();
    }
    user
}

fn signed(keys: &CalloutKeys, claims: &Value) -> Result<String, WireError> {
    let encode = |text: &str| BASE64URL_NOPAD.encode(text.as_bytes());
    let message = format!("{}.{}", encode(HEADER), encode(&claims.to_string()));
    let signature = keys.issuer.sign(message.as_bytes());
    let signature = signature.map_err(|_| WireError::Sign)?;
    Ok(format!("{message}.{}", BASE64URL_NOPAD.encode(&signature)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys() -> CalloutKeys {
        let (issuer, xkey) = CalloutKeys::new_seeds();
        CalloutKeys::from_seeds(&issuer, &xkey).unwrap()
    }

    /// A request as nats-server makes it.
    fn request(server: &KeyPair, named: &str, options: &Value) -> String {
        let claims = json!({
            "iss": named, "aud": "nats-authorization-request",
            "nats": {
                "server_id": { "id": server.public_key(), "name": "n1" }, "user_nkey": "UA",
                "client_info": { "host": "127.0.0.1", "kind": "Client", "type": "mqtt", "mqtt_id": "ann:1" },
                "connect_opts": options,
            },
        });
        let encode = |text: &str| BASE64URL_NOPAD.encode(text.as_bytes());
        let message = format!("{}.{}", encode(HEADER), encode(&claims.to_string()));
        let signature = server.sign(message.as_bytes()).unwrap();
        format!("{message}.{}", BASE64URL_NOPAD.encode(&signature))
    }

    #[test]
    fn a_sealed_request_is_read_and_answered() {
        let (keys, server, box_) = (keys(), KeyPair::new_server(), XKey::new());
        let options = json!({"user": "x", "pass": "t.o.k"});
        let text = request(&server, &server.public_key(), &options);
        let ours = XKey::from_public_key(&keys.xkey()).unwrap();
        let sealed = box_.seal(text.as_bytes(), &ours).unwrap();
        let (asker, login) = open(&keys, Some(&box_.public_key()), &sealed).unwrap();
        assert_eq!((login.token.as_str(), login.is_client), ("t.o.k", true));
        assert_eq!(login.mqtt_client.as_deref(), Some("ann:1"));
        assert_eq!(asker.refuse, None);
        let admission = Admission {
            name: "ann:j1".to_owned(),
            publish: vec!["_NONE_".to_owned()],
            subscribe: vec!["_INBOX.ann.>".to_owned()],
            expires_at_s: Some(7),
        };
        let sealed = answer(&keys, &asker, "WEIR", Ok(admission), 5).unwrap();
        let answer = String::from_utf8(box_.open(&sealed, &ours).unwrap()).unwrap();
        let claims = |text: &str| -> Value {
            let payload = text.split('.').nth(1).unwrap();
            serde_json::from_slice(&BASE64URL_NOPAD.decode(payload.as_bytes()).unwrap()).unwrap()
        };
        let answer = claims(&answer);
        assert_eq!(
            (answer["sub"].as_str(), &answer["aud"]),
            (Some("UA"), &json!(server.public_key()))
        );
        let user = claims(answer["nats"]["jwt"].as_str().unwrap());
        assert_eq!(
            (&user["aud"], &user["exp"], &user["name"]),
            (&json!("WEIR"), &json!(7), &json!("ann:j1"))
        );
        assert_eq!(user["nats"]["pub"]["allow"], json!(["_NONE_"]));
        assert!(user["nats"].get("resp").is_none());
    }

    #[test]
    fn what_is_not_sealed_is_refused_and_what_is_not_signed_is_not_read() {
        let (keys, server) = (keys(), KeyPair::new_server());
        let options = json!({"auth_token": "t", "pass": "p"});
        let plain = request(&server, &server.public_key(), &options);
        let (asker, login) = open(&keys, None, plain.as_bytes()).unwrap();
        assert!(asker.refuse.is_some());
        assert_eq!(login.token, "t");
        let other = KeyPair::new_server().public_key();
        let forged = request(&server, &other, &options);
        assert_eq!(
            open(&keys, None, forged.as_bytes()).err(),
            Some(WireError::Signature)
        );
        let box_ = XKey::new();
        let for_another = box_.seal(plain.as_bytes(), &XKey::new()).unwrap();
        let found = open(&keys, Some(&box_.public_key()), &for_another);
        assert_eq!(found.err(), Some(WireError::Sealed));
        for (text, error) in [
            ("", WireError::Form),
            ("a.b.c", WireError::Form),
            ("e30.e30.e30", WireError::Claims),
        ] {
            assert_eq!(
                open(&keys, None, text.as_bytes()).err(),
                Some(error),
                "{text}"
            );
        }
        assert_eq!(
            open(&keys, Some("X"), b"").err(),
            Some(WireError::ServerKey)
        );
    }
}
