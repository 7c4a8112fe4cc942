package agent

import (
	"fmt"
	"slices"
	"strings"
	"unicode"

	"github.com/gatemesh/gatemesh/bus"
)

// A choice is whom to ask for what.
type choice struct {
	agent, name string
	// gateway is set when the question pins it ("bobby@bobby-gateway").
	gateway    string
	capability string
}

// The capabilities that words suggest, most telling words first.
var keywords = []struct {
	capability string
	words      []string
}{
	{"infra.check", []string{"infra", "infrastructure", "consul", "nomad", "service", "services", "allocation", "allocations", "cluster", "members", "jobs"}},
	{"node.report", []string{"node", "nodes", "load", "disk", "disks", "memory", "ram", "cpu", "uptime"}},
	{"infra.check", []string{"check", "checks", "status", "health", "healthy", "unhealthy", "alert", "alerts"}},
}

// choose applies the rules of [relay]; false: none fits.
func (r *relay) choose(question, capability, from string) (choice, bool) {
	words := split(question)
	all := slices.DeleteFunc(r.dir.Agents(""), func(a bus.AgentInfo) bool { return a.ID == r.spec.ID || a.ID == from })
	suggested := suggest(words, capability, all)
	if a, gateway, ok := mentioned(words, all); ok {
		c := choice{agent: a.ID, name: displayName(a), gateway: gateway}
		c.capability = first(suggested, a.Capabilities)
		return c, true
	}
	if to := r.spec.Runner.To; to != "" {
		c := choice{agent: to, name: to}
		if i := slices.IndexFunc(all, func(a bus.AgentInfo) bool { return a.ID == to }); i >= 0 {
			c.name, c.capability = displayName(all[i]), first(suggested, all[i].Capabilities)
		}
		return c, true
	}
	for _, s := range suggested {
		for _, a := range all {
			if a.Status == bus.StatusActive && slices.Contains(a.Capabilities, s) {
				return choice{agent: a.ID, name: displayName(a), capability: s}, true
			}
		}
	}
	return choice{}, false
}

// suggest lists the capabilities that may be meant, best first.
func suggest(words []word, capability string, agents []bus.AgentInfo) []string {
	var list []string
	if capability != "" {
		list = append(list, capability)
	}
	for _, w := range words {
		for _, a := range agents {
			if strings.Contains(w.text, ".") && slices.Contains(a.Capabilities, w.text) {
				list = append(list, w.text)
			}
		}
	}
	for _, k := range keywords {
		if slices.ContainsFunc(words, func(w word) bool { return slices.Contains(k.words, w.text) }) {
			list = append(list, k.capability)
		}
	}
	return list
}

// first is the first of wanted that offered has, or "".
func first(wanted, offered []string) string {
	for _, w := range wanted {
		if slices.Contains(offered, w) {
			return w
		}
	}
	return ""
}

// mentioned finds the agent that the question names first, by id or by name, with the gateway
// when it says agent@gateway.
func mentioned(words []word, agents []bus.AgentInfo) (found bus.AgentInfo, gateway string, ok bool) {
	for i := range words {
		best := 0
		for _, a := range agents {
			for _, name := range [...]string{a.ID, a.Name} {
				n := split(name)
				// The longest name wins: "Bobby Tables" is not Bobby.
				if len(n) <= best || len(n) > len(words)-i || !slices.EqualFunc(n, words[i:i+len(n)], func(x, y word) bool { return x.text == y.text }) {
					continue
				}
				best, found, ok, gateway = len(n), a, true, words[i+len(n)-1].at
			}
		}
		if ok {
			return found, gateway, true
		}
	}
	return bus.AgentInfo{}, "", false
}

// A word of a question, in small letters; at is what followed an @.
type word struct{ text, at string }

// split finds the words: letters and digits of any script, with "-", "_" and "." inside.
func split(s string) []word {
	var words []word
	for _, f := range strings.FieldsFunc(strings.ToLower(s), func(r rune) bool {
		return !unicode.IsLetter(r) && !unicode.IsDigit(r) && !strings.ContainsRune("-_.@", r)
	}) {
		text, at, _ := strings.Cut(strings.Trim(f, "-_.@"), "@")
		if text != "" {
			words = append(words, word{text, at})
		}
	}
	return words
}

func displayName(a bus.AgentInfo) string {
	if a.Name != "" {
		return a.Name
	}
	return a.ID
}

// help lists what can be asked for now.
func (r *relay) help() string {
	var b strings.Builder
	fmt.Fprintf(&b, "I am %s. I pass questions on: name an agent (\"Ask Bobby to check Consul services\") or say what you want to know.", r.spec.DisplayName())
	n := 0
	for _, a := range r.dir.Agents("") {
		if a.ID == r.spec.ID {
			continue
		}
		n++
		fmt.Fprintf(&b, "\n- %s", displayName(a))
		if a.Name != "" && !strings.EqualFold(a.Name, a.ID) {
			fmt.Fprintf(&b, " (%s)", a.ID)
		}
		if a.Gateway != "" {
			fmt.Fprintf(&b, " on %s", a.Gateway)
		}
		if a.Status != bus.StatusActive {
			fmt.Fprintf(&b, ", not reachable now")
		}
		if len(a.Capabilities) > 0 {
			fmt.Fprintf(&b, ": %s", strings.Join(a.Capabilities, ", "))
		}
		if a.Description != "" {
			fmt.Fprintf(&b, " (%s)", a.Description)
		}
	}
	if n == 0 {
		b.WriteString("\nNo other agent is known here now.")
	}
	return b.String()
}
