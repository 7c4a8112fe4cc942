package infra

import (
	"fmt"
	"strings"
	"time"
)

// Status says how much of one part of the check could be seen.
type Status string

const (
	// StatusOK: every question was answered and nothing is wrong.
	StatusOK Status = "ok"
	// StatusAlert: something is wrong, or a question stayed without an answer.
	StatusAlert Status = "alert"
	// StatusAbsent: not configured, and nothing listens at the default address.
	StatusAbsent Status = "absent"
	// StatusUnreachable: it should be there and answered no question.
	StatusUnreachable Status = "unreachable"
	// StatusForbidden: it answered, but the token does not show everything.
	StatusForbidden Status = "forbidden"
)

// List counts named things and names the first of them, in sorted order.
type List struct {
	// Count is how many there are, named or not.
	Count int `json:"count"`
	// Names are at most Options.MaxNames of them; empty, never null.
	Names []string `json:"names"`
	// More is how many are not named.
	More int `json:"more"`
}

// String is "a, b and 7 more", or "none".
func (l List) String() string {
	if l.Count == 0 {
		return "none"
	}
	s := strings.Join(l.Names, ", ")
	if l.More > 0 {
		s += fmt.Sprintf(" and %d more", l.More)
	}
	return s
}

// Report is the outcome of one check. Its JSON names are stable; all lists are
// sorted, so that two checks of the same state differ in times and measured
// values only.
type Report struct {
	// Result is the one line of the plan; see the package comment.
	Result string `json:"result"`
	// Detail names what each part saw, also the absent ones, on one line.
	Detail string `json:"detail"`
	// Alert is true exactly when Result begins with "alert:".
	Alert bool `json:"alert"`
	// CheckedAt is when the check began, in UTC.
	CheckedAt time.Time `json:"checked_at"`
	// TookMS is how long it took, in milliseconds.
	TookMS int64 `json:"took_ms"`
	// FailedAllocations and UnhealthyServices are the numbers in Result.
	FailedAllocations int `json:"failed_allocations"`
	UnhealthyServices int `json:"unhealthy_services"`
	// Problems are the further items of the alert line, in its order.
	Problems []string `json:"problems"`
	// Absent names the parts that are not there: "consul", "nomad".
	Absent []string `json:"absent"`

	Consul ConsulReport `json:"consul"`
	Nomad  NomadReport  `json:"nomad"`
	Node   NodeReport   `json:"node"`
}

// ConsulReport is what Consul said.
type ConsulReport struct {
	Status Status `json:"status"`
	// Address is where it was asked, without credentials.
	Address string `json:"address"`
	// Errors names each question that stayed without a (full) answer.
	Errors  []string `json:"errors"`
	Agent   string   `json:"agent"`
	Version string   `json:"version"`
	Leader  string   `json:"leader"`
	// Members counts all members in the agent's view, failed and left ones too.
	Members       int  `json:"members"`
	FailedMembers List `json:"failed_members"`
	// LeftMembers left gracefully; no alert.
	LeftMembers List `json:"left_members"`
	// Services counts the names in the catalog, "consul" included.
	Services int `json:"services"`
	// UnhealthyServices have a warning or critical check: one entry a service.
	UnhealthyServices List `json:"unhealthy_services"`
	// UnhealthyNodeChecks belong to a node, not a service; the serf check of a
	// failed member is not repeated here.
	UnhealthyNodeChecks List `json:"unhealthy_node_checks"`
	// Maintenance lists services and nodes put into maintenance; no alert.
	Maintenance List  `json:"maintenance"`
	TookMS      int64 `json:"took_ms"`

	problems []string
}

// NomadReport is what Nomad said.
type NomadReport struct {
	Status Status `json:"status"`
	// Address is where it was asked, without credentials.
	Address string `json:"address"`
	// Errors names each question that stayed without a (full) answer.
	Errors []string `json:"errors"`
	Leader string   `json:"leader"`
	// Nodes counts client nodes; ReadyNodes those with status "ready".
	Nodes      int `json:"nodes"`
	ReadyNodes int `json:"ready_nodes"`
	// DownNodes are down or disconnected.
	DownNodes List `json:"down_nodes"`
	// IneligibleNodes are ready but take no new work (drain included); no alert.
	IneligibleNodes List `json:"ineligible_nodes"`
	// Jobs counts jobs that are not stopped.
	Jobs int `json:"jobs"`
	// DeadJobs are service and system jobs that nobody stopped.
	DeadJobs List `json:"dead_jobs"`
	// PendingJobs have had work without a place for Options.PendingAfter.
	PendingJobs List `json:"pending_jobs"`
	// RunningAllocations is the sum over the jobs' summaries.
	RunningAllocations int `json:"running_allocations"`
	// FailedAllocations are failed or lost and should run.
	FailedAllocations List  `json:"failed_allocations"`
	TookMS            int64 `json:"took_ms"`

	problems []string
}

// NodeReport is what the node that runs the check says of itself. A value that
// could not be read is absent (nil), and Errors says why.
type NodeReport struct {
	// Status is "ok" or "alert".
	Status        Status    `json:"status"`
	CheckedAt     time.Time `json:"checked_at"`
	Hostname      string    `json:"hostname"`
	UptimeSeconds *uint64   `json:"uptime_seconds,omitempty"`
	Cores         int       `json:"cores"`
	// Load1 is the load average of one minute; Load1PerCore is alerted on.
	Load1             *float64 `json:"load1,omitempty"`
	Load1PerCore      *float64 `json:"load1_per_core,omitempty"`
	MemoryUsedPercent *float64 `json:"memory_used_percent,omitempty"`
	MemoryTotalBytes  *uint64  `json:"memory_total_bytes,omitempty"`
	DiskPath          string   `json:"disk_path"`
	DiskUsedPercent   *float64 `json:"disk_used_percent,omitempty"`
	DiskTotalBytes    *uint64  `json:"disk_total_bytes,omitempty"`
	// Problems are the node's items of the alert line, such as
	// "node memory 97%".
	Problems []string `json:"problems"`
	Errors   []string `json:"errors"`
	TookMS   int64    `json:"took_ms"`
}

// Summary is the one line: Result.
func (r Report) Summary() string { return r.Result }

// Text is the report for a chat: the result, what is wrong by name, and one
// line for each part.
func (r Report) Text() string {
	lines := []string{r.Result}
	name := func(title string, l List) {
		if l.Count > 0 {
			lines = append(lines, title+": "+l.String())
		}
	}
	name("Failed allocations", r.Nomad.FailedAllocations)
	name("Unhealthy services", r.Consul.UnhealthyServices)
	name("Failed members", r.Consul.FailedMembers)
	name("Node checks", r.Consul.UnhealthyNodeChecks)
	name("Down nodes", r.Nomad.DownNodes)
	name("Dead jobs", r.Nomad.DeadJobs)
	name("Pending jobs", r.Nomad.PendingJobs)
	name("Ineligible nodes (on purpose)", r.Nomad.IneligibleNodes)
	name("In maintenance (on purpose)", r.Consul.Maintenance)
	name("Left members (on purpose)", r.Consul.LeftMembers)
	lines = append(lines,
		withErrors("Consul: "+r.Consul.line(), r.Consul.Status, r.Consul.Errors),
		withErrors("Nomad: "+r.Nomad.line(), r.Nomad.Status, r.Nomad.Errors),
		r.Node.Text())
	return strings.Join(lines, "\n")
}

// Text is the node's own line for a chat.
func (n NodeReport) Text() string {
	s := "Node " + n.Hostname + ": " + n.line()
	if n.UptimeSeconds != nil {
		s += ", up " + span(time.Duration(*n.UptimeSeconds)*time.Second)
	}
	if len(n.Problems) > 0 {
		s += " (alert: " + strings.Join(n.Problems, ", ") + ")"
	}
	return s
}

// withErrors adds the first unanswered questions, unless the line says it all.
func withErrors(line string, status Status, errs []string) string {
	if len(errs) == 0 || status == StatusAbsent || status == StatusUnreachable {
		return line
	}
	return line + " [" + newList(errs, 3).String() + "]"
}

func (r ConsulReport) line() string {
	switch r.Status {
	case StatusAbsent:
		return absentWords(r.Address)
	case StatusUnreachable:
		return unreachableWords(r.Address, r.Errors)
	}
	s := fmt.Sprintf("%s, %s", plural(r.Members, "member"), plural(r.Services, "service"))
	if r.Status == StatusForbidden {
		s = "forbidden to this token in part; saw " + s
	}
	return s
}

func (r NomadReport) line() string {
	switch r.Status {
	case StatusAbsent:
		return absentWords(r.Address)
	case StatusUnreachable:
		return unreachableWords(r.Address, r.Errors)
	}
	s := fmt.Sprintf("%d of %s ready, %s, %s running", r.ReadyNodes, plural(r.Nodes, "node"),
		plural(r.Jobs, "job"), plural(r.RunningAllocations, "allocation"))
	if r.Status == StatusForbidden {
		s = "forbidden to this token in part; saw " + s
	}
	return s
}

func (n NodeReport) line() string {
	var parts []string
	if n.Load1 != nil {
		parts = append(parts, fmt.Sprintf("load %.1f on %s", *n.Load1, plural(n.Cores, "core")))
	}
	if n.MemoryUsedPercent != nil {
		parts = append(parts, fmt.Sprintf("memory %.0f%%", *n.MemoryUsedPercent))
	}
	if n.DiskUsedPercent != nil {
		parts = append(parts, fmt.Sprintf("disk %.0f%%", *n.DiskUsedPercent))
	}
	if len(parts) == 0 {
		return "nothing could be read"
	}
	return strings.Join(parts, ", ")
}

func absentWords(address string) string {
	if address == "" {
		return "absent (not configured)"
	}
	return "absent (nothing answers at " + address + ")"
}

func unreachableWords(address string, errs []string) string {
	s := "unreachable at " + address
	if len(errs) > 0 {
		s += " (" + errs[0] + ")"
	}
	return s
}

// conclude fills the lines and numbers that follow from the three parts.
func (r *Report) conclude() {
	r.FailedAllocations = r.Nomad.FailedAllocations.Count
	r.UnhealthyServices = r.Consul.UnhealthyServices.Count
	r.Problems = append(append(append([]string{}, r.Consul.problems...), r.Nomad.problems...), r.Node.Problems...)
	r.Absent = []string{}
	if r.Consul.Status == StatusAbsent {
		r.Absent = append(r.Absent, "consul")
	}
	if r.Nomad.Status == StatusAbsent {
		r.Absent = append(r.Absent, "nomad")
	}
	r.Alert = r.FailedAllocations > 0 || r.UnhealthyServices > 0 || len(r.Problems) > 0

	const nobody = "no Consul or Nomad answered"
	switch {
	case r.Alert:
		items := append([]string{
			fmt.Sprintf("%d failed allocations", r.FailedAllocations),
			fmt.Sprintf("%d unhealthy services", r.UnhealthyServices),
		}, r.Problems...)
		if len(r.Absent) == 2 {
			items = append(items, nobody)
		}
		r.Result = "alert: " + strings.Join(items, ", ")
	case len(r.Absent) == 2:
		r.Result = "absent: " + nobody + "; node ok"
	default:
		r.Result = "all-healthy"
	}
	r.Detail = "consul: " + r.Consul.line() + "; nomad: " + r.Nomad.line() + "; node: " + r.Node.line()
}

func plural(n int, word string) string {
	if n == 1 {
		return "1 " + word
	}
	return fmt.Sprintf("%d %ss", n, word)
}

// span is a duration in its two largest units: "3d4h", "5h2m", "7m".
func span(d time.Duration) string {
	days, hours, minutes := int(d.Hours())/24, int(d.Hours())%24, int(d.Minutes())%60
	switch {
	case days > 0:
		return fmt.Sprintf("%dd%dh", days, hours)
	case hours > 0:
		return fmt.Sprintf("%dh%dm", hours, minutes)
	default:
		return fmt.Sprintf("%dm", minutes)
	}
}
