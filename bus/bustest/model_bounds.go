package bustest

import (
	"maps"
	"slices"
)

// Models are the instances that are visited as a whole, by name. The short ones take seconds in all, the long ones
// minutes and some gigabytes.
func Models(long bool) map[string]*Model {
	ask, retry := []Verdict{VerdictAsk}, []Verdict{VerdictFail, VerdictAck}
	ack, never, hopeless := []Verdict{VerdictAck}, []Verdict{VerdictNever}, []Verdict{VerdictFail}
	talk := []ModelMessage{{0, ask}, {0, retry}}
	apart := []ModelMessage{{0, never}, {1, ack}}
	three := []ModelMessage{{0, retry}, {1, ack}, {0, ack}}
	models := map[string]*Model{}
	add := func(name string, messages []ModelMessage, f Faults) {
		models[name] = &Model{Messages: messages, Attempts: 2, MaxCrashes: 2, Faults: f}
	}
	add("no fault", three, Faults{})
	add("crash", talk, Faults{Crashes: 1})
	add("two crashes", apart, Faults{Crashes: 2})
	add("deposed", talk, Faults{Depositions: 1})
	add("duplicates", talk, Faults{Duplicates: 1})
	add("lost", talk, Faults{Lost: 2})
	add("late", talk, Faults{Late: 1})
	add("handover", talk, Faults{Handovers: 1, Lost: 1})
	add("crash and lost", apart, Faults{Crashes: 1, Lost: 1})
	add("deposed and lost", apart, Faults{Depositions: 1, Lost: 1})
	add("crash and duplicate", apart, Faults{Crashes: 1, Duplicates: 1})
	add("redrive", []ModelMessage{{0, never}}, Faults{Redrives: 1, Crashes: 1, Lost: 1})
	add("deposed, redrive and late", []ModelMessage{{0, never}}, Faults{Redrives: 1, Depositions: 1, Late: 1})
	add("asks, dies and is redriven", []ModelMessage{{0, ask}}, Faults{Redrives: 1, Crashes: 1, Handovers: 1})
	models["asks, dies and is redriven"].Attempts = 1
	add("cancel", talk, Faults{Cancels: 1})
	add("cancel, crash and lost", apart, Faults{Cancels: 1, Crashes: 1, Lost: 1})
	add("cancel, redrive and crash", []ModelMessage{{0, ack}, {0, ack}}, Faults{Cancels: 1, Redrives: 1, Crashes: 1})
	add("cancel, deposed and redrive", []ModelMessage{{0, ask}}, Faults{Cancels: 1, Depositions: 1, Redrives: 1})
	if !long {
		return models
	}
	add("poison", []ModelMessage{{0, ask}, {0, hopeless}}, Faults{Crashes: 3})
	add("three and a crash", three, Faults{Crashes: 1})
	add("three and a deposition", three, Faults{Depositions: 1})
	add("crash, late", talk, Faults{Crashes: 1, Late: 1})
	add("crash, lost", talk, Faults{Crashes: 1, Lost: 1})
	add("crash, deposed", talk, Faults{Crashes: 1, Depositions: 1})
	add("deposed, duplicate", talk, Faults{Depositions: 1, Duplicates: 1})
	add("deposed, late", talk, Faults{Depositions: 1, Late: 1})
	add("crash, duplicate, lost", apart, Faults{Crashes: 1, Duplicates: 1, Lost: 1})
	add("cancels and a crash", talk, Faults{Cancels: 2, Crashes: 1})
	add("cancel, handover, late", apart, Faults{Cancels: 1, Handovers: 1, Late: 1})
	add("crash, deposed, redrive", []ModelMessage{{0, never}}, Faults{Crashes: 1, Depositions: 1, Redrives: 1, Lost: 1})
	return models
}

// FindMistake explores the short models with a mistake in them until one is broken; nil: none was.
func FindMistake(mistake Mutation) *Exploration {
	models := Models(false)
	for _, name := range slices.Sorted(maps.Keys(models)) {
		m := models[name]
		m.Mutation = mistake
		if e := m.Explore(nil); e.Broken != "" {
			return e
		}
	}
	return nil
}
