// Command integrity watches the code of a guest's module by its hash. What the
// kernel may rewrite there, to trace it or to probe it, does not count.
package main

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"log"
	"os"
	"slices"
	"time"

	"vmscope"
)

func main() {
	g, err := vmscope.Open(context.Background(), os.Args[1])
	for was := ""; err == nil; time.Sleep(time.Second) {
		err = g.View(context.Background(), func(v *vmscope.View) error {
			now, err := hash(v, os.Args[2])
			if err == nil && now != was {
				fmt.Printf("%s: %q, was %q\n", os.Args[2], now, was)
				was = now
			}
			return err
		})
	}
	log.Fatal(err)
}

func hash(v *vmscope.View, module string) (sum string, err error) {
	code, err := v.Code()
	sites, err2 := v.PatchSites()
	for _, c := range code {
		if c.Kind == "module" && string(c.Name) == module {
			text := make([]byte, c.Size)
			_, err = v.Mem.Read(text, c.Start)
			for _, s := range slices.Backward(sites) { // probes before the places they are at
				if s.Saved == nil {
					s.Saved = make([]byte, 5)
				}
				copy(text[min(uint64(s.At-c.Start), c.Size):], s.Saved)
			}
			sum += fmt.Sprintf("%x", sha256.Sum256(text))
		}
	}
	return sum, errors.Join(err, err2)
}
