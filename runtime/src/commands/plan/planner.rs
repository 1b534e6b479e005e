//! Plans for any facts and models with the platforms and wishes of one command line, loaded once.

use crate::cli::PlanArgs;
use crate::error::Result;
use crate::{platforms, startup};
use plinth_platform::facts::{Facts, ModelFacts};
use plinth_platform::plan::Plan;
use plinth_platform::registry::Registry;
use plinth_platform::resolve::{Refusal, Wishes, resolve};
use std::sync::Arc;

/// A plan, or why there is none.
pub type Outcome = std::result::Result<Plan, Box<Refusal>>;

/// Platforms and wishes.
pub struct Planner {
    pub registry: Registry,
    pub wishes: Wishes,
}

impl Planner {
    /// As the flags have it.
    pub fn new(args: &PlanArgs) -> Result<Self> {
        Ok(Self {
            registry: platforms::registry(&args.engine.platform)?,
            wishes: startup::wishes(&args.engine),
        })
    }

    /// Plans.
    pub fn plan(&mut self, facts: &Arc<Facts>, model: &ModelFacts) -> Outcome {
        resolve(&mut self.registry, facts, model, &self.wishes)
    }

    /// Plans with the fewest devices on which the model's whole context fits, where the user named no number, or with as
    /// many as there are: a power of two, as heads are shared evenly.
    pub fn plan_where_it_fits(&mut self, facts: &Arc<Facts>, model: &ModelFacts) -> Outcome {
        let set = &self.wishes.config.user_set;
        let by_user = set.iter().any(|path| path == "tensor-parallel");
        let first = self.plan(facts, model);
        if by_user || !wants_more(&first, model) {
            return first;
        }
        let before = self.wishes.config.tensor_parallel;
        let mut devices = 2;
        let mut last = first;
        while devices as usize <= facts.devices.len() && devices <= model.num_heads {
            self.wishes.config.tensor_parallel = devices;
            last = self.plan(facts, model);
            if !wants_more(&last, model) {
                break;
            }
            devices *= 2;
        }
        self.wishes.config.tensor_parallel = before;
        last
    }
}

/// Would more devices help?
fn wants_more(outcome: &Outcome, model: &ModelFacts) -> bool {
    match outcome {
        Ok(plan) => plan.engine.max_model_len < model.max_len,
        Err(refusal) => matches!(**refusal, Refusal::DoesNotFit(_)),
    }
}
