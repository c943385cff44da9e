// Command events prints what happens to the files below a directory of a running VM, as it is committed to disk.
package main

import (
	"context"
	"fmt"
	"log"
	"os"

	"vmscope"
	"vmscope/block/tap"
	"vmscope/event"
	"vmscope/watch"
)

func main() {
	tap.Helper() // first: the disk's writes are received by this program, started once more
	o := vmscope.WatchOptions{Options: watch.Options{Paths: os.Args[2:]}}
	err := vmscope.Watch(context.Background(), os.Args[1], o, func(e event.Event) error {
		fmt.Printf("%s: %q\n", e.Op, e.Path)
		return nil
	})
	log.Fatal(err)
}
