package main

import (
	"bufio"
	"context"
	"strings"
)

const promptHelp = `type a question for jerry, or:
  agents     who is there
  show ID    a message: its last characters will do
  open       the address of the page
  quit       stop everything
`

// prompt asks on, until quit, the end of input or a signal.
func (d *demo) prompt(ctx context.Context) error {
	d.p.printf("\n%s", promptHelp)
	// Reading cannot be interrupted: the goroutine may stay until the process ends, which
	// follows at once.
	lines := make(chan string)
	go func() {
		defer close(lines)
		in := bufio.NewScanner(d.a.in)
		in.Buffer(nil, maxBody)
		for in.Scan() {
			select {
			case lines <- strings.TrimSpace(in.Text()):
			case <-ctx.Done():
				return
			}
		}
	}()
	for {
		d.p.printf("\n%s ", d.p.paint(bold, "ask>"))
		select {
		case <-ctx.Done():
			d.p.printf("\n")
			return nil
		case err := <-d.died:
			return err
		case line, ok := <-lines:
			if !ok {
				d.p.printf("\n")
				return nil
			}
			if quit := d.command(ctx, line); quit {
				return nil
			}
		}
	}
}

// command does what one line says. What goes wrong is said, and the demo goes on.
func (d *demo) command(ctx context.Context, line string) (quit bool) {
	verb, rest, _ := strings.Cut(line, " ")
	var err error
	switch {
	case line == "":
	case line == "quit", line == "exit":
		return true
	case line == "help", line == "?":
		d.p.printf("%s", promptHelp)
	case line == "open":
		d.p.printf("%s/\n", d.nodes[0].addr)
	case line == "agents":
		ctx, cancel := context.WithTimeout(ctx, callTimeout)
		defer cancel()
		agents, e := d.nodes[0].client.agents(ctx, "")
		if err = e; err == nil {
			d.a.printAgents(agents)
		}
	case verb == "show" && rest != "" && !strings.Contains(strings.TrimSpace(rest), " "):
		ctx, cancel := context.WithTimeout(ctx, callTimeout)
		defer cancel()
		st, e := d.nodes[0].client.find(ctx, strings.TrimSpace(rest))
		if err = e; err == nil {
			d.a.printMessage(st)
		}
	default:
		_, err = d.ask(ctx, line)
	}
	if err != nil && ctx.Err() == nil {
		report(d.a.err, err)
	}
	return false
}
