// Command versions prints the hash of each version of a file of a running VM, as it is committed to disk: of /etc/passwd, say.
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
	tap.Helper()
	file := os.Args[2]
	o := vmscope.WatchOptions{Options: watch.Options{Paths: []string{file}, Content: 1 << 20}}
	log.Fatal(vmscope.Watch(context.Background(), os.Args[1], o, func(e event.Event) error {
		if e.Path == file && e.Content != nil {
			fmt.Printf("%x %d bytes, transaction %d\n", e.Content.SHA256, len(e.Content.Data), e.TID)
		}
		return nil
	}))
}
