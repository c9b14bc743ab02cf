//! One body, a test for each ring format that lanes have.

/// Makes a test `split::name` of each function over split rings. A function takes the [`Kind`](crate::guest::Kind) of ring and returns a `Result<()>`.
#[macro_export]
macro_rules! over_both {
    ($($name:ident),+ $(,)?) => {
        mod split {
            $(#[test] fn $name() -> anyhow::Result<()> { super::$name($crate::guest::Kind::Split) })+
        }
    };
}
