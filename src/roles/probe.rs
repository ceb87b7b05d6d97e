//! Knows: how it is seen that the delivery path works: a message all the way round. Never: who asks.

use std::time::Duration;

use futures_util::StreamExt as _;
use weir_nats::stream::{PROBE_SUBJECT, PROBED_SUBJECT, context, declare_probe};

use super::Roles;

/// For a probe to come back.
const PROBE_WITHIN: Duration = Duration::from_secs(2);

impl Roles {
    /// A round trip through the delivery path: stored by JetStream, republished, and back here.
    ///
    /// # Errors
    /// A sentence that says what does not work.
    pub async fn probe(&self) -> Result<(), String> {
        if !*self.guard.gate().borrow() {
            return Err("the streams are not compared since the last connect to NATS".to_owned());
        }
        let name = self.links.live.new_inbox().replace('.', "-");
        let text = |error: &dyn std::fmt::Display| error.to_string();
        let probed = format!("{PROBED_SUBJECT}.{name}");
        let mut back = self
            .links
            .live
            .subscribe(probed)
            .await
            .map_err(|e| text(&e))?;
        let js = context(self.links.live.clone());
        let store = async || {
            let publish = js.publish(format!("{PROBE_SUBJECT}.{name}"), "".into());
            let ack = publish.await.map_err(|e| text(&e))?;
            ack.await.map_err(|e| text(&e))
        };
        let round_trip = async {
            if store().await.is_err() {
                // The probe's stream is in memory, so it goes when nats-server does.
                declare_probe(&js).await.map_err(|e| text(&e))?;
                store().await?;
            }
            back.next()
                .await
                .ok_or_else(|| "the probe's subscription ended".to_owned())
        };
        match tokio::time::timeout(PROBE_WITHIN, round_trip).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(error)) => Err(error),
            Err(_) => Err("a probe did not come back through NATS in time".to_owned()),
        }
    }
}
