pub mod launch;
pub mod minivu;
pub mod rows;
