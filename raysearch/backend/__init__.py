"""Ray: trials on slots of Ray Train workers that outlive one recipe. Nothing else imports ray."""
