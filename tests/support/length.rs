//! Knows: whether tests run short or whole. Never: what they run.

/// True in `make test-long`.
pub(crate) fn long() -> bool {
    std::env::var("WEIR_TEST_LONG").is_ok_and(|value| value == "1")
}

/// `short` in `make test`, `whole` in `make test-long`.
pub(crate) fn either<T>(short: T, whole: T) -> T {
    if long() { whole } else { short }
}
