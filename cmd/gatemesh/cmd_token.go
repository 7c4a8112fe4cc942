package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/gatemesh/gatemesh/envelope"
	"github.com/gatemesh/gatemesh/gateway"
)

// tokenEntry is one item of gateway.auth.tokens. The JSON names are the configuration's.
type tokenEntry struct {
	Name    string `json:"name"`
	Role    string `json:"role"`
	SHA256  string `json:"sha256"`
	Agent   string `json:"agent,omitempty"`
	Expires string `json:"expires,omitempty"`
}

// line is the entry as people write configuration.
func (e tokenEntry) line() string {
	s := fmt.Sprintf("{ name: %q, role: %q, sha256: %q", e.Name, e.Role, e.SHA256)
	if e.Agent != "" {
		s += fmt.Sprintf(", agent: %q", e.Agent)
	}
	if e.Expires != "" {
		s += fmt.Sprintf(", expires: %q", e.Expires)
	}
	return s + " },"
}

// newToken is what "token create --json" prints.
type newToken struct {
	Token string     `json:"token"`
	Entry tokenEntry `json:"entry"`
}

func (a *app) tokenCommand() *cobra.Command {
	return group("token", "Make tokens for the API; a gateway keeps only their hashes",
		a.tokenCreateCommand(), a.tokenHashCommand())
}

func (a *app) tokenCreateCommand() *cobra.Command {
	var name, role, agent, expires string
	c := &cobra.Command{
		Use: "create --name NAME --role ROLE", Short: "Make a token, and the line of the configuration that lets it in",
		Long: `Make a token of 32 random bytes. The first line is the token: give it to whoever needs it, it is shown
this once and kept nowhere. The second line goes into gateway.auth.tokens of each gateway that shall know it;
a running one takes it up by itself, and nobody who reads that file can come in with it.

To replace a token without a gap: add the new one's line, hand it out, then remove the old one's. Its open
streams end at that moment.

  read     look: agents, messages and their texts, inboxes, dead letters, events
  send     also send, ask, add tasks, record events, set the focus
  operate  also redrive, purge, cancel and clear`,
		Args: cobra.NoArgs,
		RunE: body(func(*cobra.Command, []string) error {
			e := tokenEntry{Name: name, Role: role, Agent: agent}
			switch {
			case !envelope.ValidName(name):
				return failf(exitUsage, "--name %q is not an id: small letters, digits and '-' say who has the token", name)
			case agent != "" && !envelope.ValidName(agent):
				return failf(exitUsage, "--agent %q is not the name of an agent", agent)
			case !slices.Contains(gateway.Roles(), role):
				return failf(exitUsage, "--role %q is not one of %s", role, strings.Join(gateway.Roles(), ", "))
			}
			var err error
			if e.Expires, err = expiry(expires, time.Now()); err != nil {
				return err
			}
			token := gateway.NewToken()
			if e.SHA256, err = gateway.HashToken(token); err != nil {
				return err
			}
			p := a.printer()
			if a.asJSON {
				return p.json(newToken{token, e})
			}
			p.printf("%s\n%s\n", token, e.line())
			if p.terminal {
				fmt.Fprintln(a.err, "The token is shown this once. The second line goes into gateway.auth.tokens.")
			}
			return nil
		}),
	}
	c.Flags().StringVar(&name, "name", "", "who has it, as ci or anna-laptop")
	c.Flags().StringVar(&agent, "agent", "", "the agent that it speaks for, and whose messages it fetches; nobody else's")
	c.Flags().StringVar(&role, "role", "", "what it may do: "+strings.Join(gateway.Roles(), ", "))
	c.Flags().StringVar(&expires, "expires", "", "when it ends: 2027-01-31T00:00:00Z, or how long it lives, as 720h (default: never)")
	_ = c.RegisterFlagCompletionFunc("role", cobra.FixedCompletions(gateway.Roles(), cobra.ShellCompDirectiveNoFileComp))
	return c
}

// expiry is a time, or a duration from now on, as the configuration has it.
func expiry(text string, now time.Time) (string, error) {
	if text == "" {
		return "", nil
	}
	at, err := time.Parse(time.RFC3339, text)
	if err != nil {
		d, derr := time.ParseDuration(text)
		if derr != nil {
			return "", failf(exitUsage, "--expires %q is neither a time like 2027-01-31T00:00:00Z nor a duration like 720h", text)
		}
		at = now.Add(d)
	}
	if !at.After(now) {
		return "", failf(exitUsage, "--expires %q is over already", text)
	}
	return at.UTC().Format(time.RFC3339), nil
}

func (a *app) tokenHashCommand() *cobra.Command {
	return &cobra.Command{
		Use: "hash", Short: "Read a token from standard input and print what gateway.auth.tokens[].sha256 says of it",
		Long: `Read one token from standard input (on a terminal: without showing it) and print its SHA-256. A token of less
than 22 characters is refused: a short one can be found from its hash by trying.`,
		Args: cobra.NoArgs,
		RunE: body(func(*cobra.Command, []string) error {
			token, err := a.readSecret("token: ")
			if err != nil {
				return err
			}
			sum, err := gateway.HashToken(token)
			if err != nil {
				return failf(exitUsage, "%w", err)
			}
			if a.asJSON {
				return a.printer().json(struct {
					SHA256 string `json:"sha256"`
				}{sum})
			}
			a.printer().printf("%s\n", sum)
			return nil
		}),
	}
}

// readSecret reads one line; its line break is no part of it.
func (a *app) readSecret(prompt string) (string, error) {
	if f, ok := a.in.(*os.File); ok && isTerminal(f) {
		fmt.Fprint(a.err, prompt)
		b, err := term.ReadPassword(int(f.Fd()))
		fmt.Fprintln(a.err)
		return string(b), err
	}
	const most = 64 << 10
	line, err := bufio.NewReader(io.LimitReader(a.in, most)).ReadString('\n')
	if err != nil && !errors.Is(err, io.EOF) {
		return "", fmt.Errorf("read standard input: %w", err)
	}
	return strings.TrimRight(line, "\r\n"), nil
}
