// Command variable reads one kernel variable by its symbol: how often the guest
// has forked.
package main

import (
	"context"
	"fmt"
	"log"
	"os"

	"vmscope"
)

func main() {
	err := vmscope.Look(context.Background(), os.Args[1], func(v *vmscope.View) error {
		at, err := v.Symbol("total_forks")
		if err != nil {
			return err
		}
		forks, err := v.Mem.Uint64(at)
		fmt.Println(forks)
		return err
	})
	if err != nil {
		log.Fatal(err)
	}
}
