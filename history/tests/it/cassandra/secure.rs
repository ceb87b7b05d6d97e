//! TLS with certificates on both sides, user and password.

use std::process::Command;

use weir_history::{Archive, CassandraTls, Password};

use super::config_at;
use crate::node::Node;

fn keytool(arguments: &[&str]) {
    let output = Command::new("keytool").args(arguments).output();
    let output = output.expect("keytool comes with Java");
    assert!(output.status.success(), "{output:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_speaks_tls_and_says_what_is_wrong() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str| folder.path().join(name).display().to_string();
    let (store, pem, yaml) = (file("store.p12"), file("ca.pem"), file("tls.yaml"));
    let common = [
        "-keystore",
        &store,
        "-storepass",
        "secret",
        "-alias",
        "node",
    ];
    let make = [
        "-genkeypair",
        "-keyalg",
        "EC",
        "-dname",
        "CN=127.0.0.1",
        "-ext",
        "SAN=IP:127.0.0.1",
        "-storetype",
        "PKCS12",
    ];
    keytool(&[&make[..], &common].concat());
    keytool(&[&["-exportcert", "-rfc", "-file", &pem][..], &common].concat());
    // Ours, which the node asks for.
    let (own, own_key, trust) = (file("own.pem"), file("own.key"), file("trust.p12"));
    let made = rcgen::generate_simple_self_signed(vec!["weir.internal".to_owned()]).unwrap();
    std::fs::write(&own, made.cert.pem()).unwrap();
    std::fs::write(&own_key, made.signing_key.serialize_pem()).unwrap();
    let import = ["-importcert", "-noprompt", "-file", &own, "-alias", "weir"];
    let into = [
        "-keystore",
        &trust,
        "-storepass",
        "secret",
        "-storetype",
        "PKCS12",
    ];
    keytool(&[&import[..], &into].concat());
    let options = format!(
        "client_encryption_options:\n  enabled: true\n  optional: true\n  keystore: {store}\n  \
         keystore_password: secret\n  require_client_auth: true\n  truststore: {trust}\n  \
         truststore_password: secret\n"
    );
    std::fs::write(&yaml, options).unwrap();
    let node = Node::start(&["--auth", "--yaml", &yaml]);

    let mut config = config_at(vec![node.address()], "secure", 1);
    config.tls = Some(CassandraTls {
        ca_file: Some(pem.into()),
        identity: Some((own.into(), own_key.into())),
    });
    let with = |password: &str| {
        let mut config = config.clone();
        config.credentials = Some(("cassandra".into(), Password::new(password.into())));
        config
    };
    let archive = Archive::cassandra(with("cassandra")).await.unwrap();
    let connected = tokio::time::timeout(crate::rig::NODE_WITHIN, archive.connected());
    connected.await.expect("TLS and the password are right");
    assert!(archive.id().is_some());

    // Credentials are asked of the cluster, which may be unwell: so this is tried again, and said.
    let wrong = Archive::cassandra(with("not it")).await.unwrap();
    let trouble = wrong.trouble();
    assert!(
        !wrong.is_connected() && trouble.contains("credentials"),
        "{trouble}"
    );
    assert!(
        !trouble.contains("not it"),
        "no log shows a password: {trouble}"
    );

    // Nothing to show, though the node asks.
    let mut nameless = with("cassandra");
    nameless.tls.as_mut().unwrap().identity = None;
    let archive = Archive::cassandra(nameless).await.unwrap();
    let trouble = archive.trouble();
    assert!(!archive.is_connected() && !trouble.is_empty(), "{trouble}");

    // A node that this authority did not sign.
    let mut stranger = with("cassandra");
    stranger.tls = Some(CassandraTls::default());
    let archive = Archive::cassandra(stranger).await.unwrap();
    let trouble = archive.trouble();
    assert!(
        !archive.is_connected() && trouble.contains("ertificate"),
        "{trouble}"
    );
}
