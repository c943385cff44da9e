// Command watch looks at a guest once a second and says which kernel modules
// came and went.
package main

import (
	"context"
	"errors"
	"fmt"
	"log"
	"os"
	"time"

	"vmscope"
	"vmscope/ctype"
	"vmscope/mem"
)

func main() {
	ctx := context.Background()
	g, err := vmscope.Open(ctx, os.Args[1])
	if err != nil {
		log.Fatal(err)
	}
	defer g.Close()
	var known map[string]bool
	for ; ; time.Sleep(time.Second) {
		now := make(map[string]bool)
		err := g.View(ctx, func(v *vmscope.View) error { return modules(v, now) })
		if errors.Is(err, mem.ErrUnreachable) {
			log.Fatal(err) // the guest has ended
		}
		if err != nil {
			log.Print(err) // it boots, or changed while we looked: look again
			continue
		}
		missing("+", now, known)
		missing("-", known, now)
		known = now
	}
}

// modules adds the names of the modules that one look sees.
func modules(v *vmscope.View, names map[string]bool) error {
	return v.Objects("modules", "module", "list", func(m ctype.Object) error {
		name, err := m.Text("name")
		names[name] = true
		return err
	})
}

// missing prints what is in one set and not in the other.
func missing(sign string, one, other map[string]bool) {
	for name := range one {
		if !other[name] {
			fmt.Printf("%s %q\n", sign, name)
		}
	}
}
