//! TLS, user and password.

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
    let options = format!(
        "client_encryption_options:\n  enabled: true\n  optional: true\n  keystore: {store}\n  \
         keystore_password: secret\n"
    );
    std::fs::write(&yaml, options).unwrap();
    let node = Node::start(&["--auth", "--yaml", &yaml]);

    let mut config = config_at(vec![node.address()], "secure", 1);
    config.tls = Some(CassandraTls {
        ca_file: Some(pem.into()),
        identity: None,
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
