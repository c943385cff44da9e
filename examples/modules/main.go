// Command modules lists a guest's kernel modules: Program 5.1 of the XenAccess paper.
package main

import (
	"context"
	"fmt"
	"log"
	"os"

	"vmscope"
	"vmscope/ctype"
)

func main() {
	err := vmscope.Look(context.Background(), os.Args[1], func(v *vmscope.View) error {
		return v.Objects("modules", "module", "list", func(m ctype.Object) error {
			name, err := m.Text("name")
			fmt.Printf("%q\n", name)
			return err
		})
	})
	if err != nil {
		log.Fatal(err)
	}
}
