/** The part of the client for operators: certificates that are revoked, policies that are changed, audit records that are read. */
import { type CallTimes, requestIdOf } from "./calls.js";
import { type PageOptions, there } from "./caller.js";
import { SteeringCalls } from "./client-steering.js";
import { type AuditCheckpoint, AuditOutcome, type AuditRecord } from "./gen/antiphon/v1/audit.js";
import { AuditServiceService, GetCheckpointRequest, ListRecordsRequest } from "./gen/antiphon/v1/audit_service.js";
import {
  IdentityServiceService,
  ListRevocationsRequest,
  type Revocation,
  RevokeCertificatesRequest,
} from "./gen/antiphon/v1/identity_service.js";
import { type PolicySet } from "./gen/antiphon/v1/policy.js";
import { ActivatePoliciesRequest, PolicyServiceService, RollBackRequest } from "./gen/antiphon/v1/policy_service.js";

/** What is revoked: all certificates of an identity that were issued so far, or one by its serial number, hexadecimal. */
export type Revoked = { kind: "sidecar" | "client" | "operator"; name: string } | { serial: string };

/** Which records of a chain are wanted: those that fit all of it. */
export interface AuditFilter extends PageOptions {
  /** From the newest back. */
  newestFirst?: boolean;
  /** What does not fit, or may not be read, comes as hidden records. */
  complete?: boolean;
  /** The first moment that belongs to it. */
  startTime?: Date;
  /** The first one that does not. */
  endTime?: Date;
  principal?: string;
  action?: string;
  outcome?: AuditOutcome;
  namespace?: string;
}

/** What operators do besides looking after agents. */
export class OperatorCalls extends SteeringCalls {
  /**
   * End what certificates may do, on live connections too. An identity comes back with a token that is made later. `cause` is for
   * people, and told to whoever is refused; `namespace` is the caller's by default. Throws REVOCATIONS_EXHAUSTED.
   */
  async revokeCertificates(what: Revoked, cause: string, options: { namespace?: string } & CallTimes = {}): Promise<void> {
    const request = RevokeCertificatesRequest.fromPartial({
      namespace: options.namespace ?? "",
      subject: "serial" in what ? { $case: "serial", value: what.serial } : { $case: "identity", value: what },
      cause,
    });
    await this.ask(IdentityServiceService.revokeCertificates, request, options);
  }

  /** What is revoked in the caller's namespace, until nothing is left of it. */
  listRevocations(options: PageOptions = {}): AsyncGenerator<Revocation, void> {
    const request = ListRevocationsRequest.fromPartial({ pageSize: options.pageSize ?? 0 });
    return this.pages(IdentityServiceService.listRevocations, request, (page) => page.revocations, options);
  }

  /**
   * Put a whole set of policies in force: texts by file name. With another epoch in force than expected, 0 for none, nothing is
   * changed. Throws POLICY_INVALID with every mistake, POLICY_EPOCH_CHANGED, POLICY_LOCKS_OUT.
   */
  async activatePolicies(
    files: Readonly<Record<string, string>>,
    options: { expectedEpoch: number; requestId?: string } & CallTimes,
  ): Promise<PolicySet> {
    const request = ActivatePoliciesRequest.fromPartial({
      requestId: requestIdOf(options.requestId),
      files: Object.entries(files).map(([name, text]) => ({ name, text })),
      expectedEpoch: options.expectedEpoch,
    });
    return there((await this.ask(PolicyServiceService.activatePolicies, request, options)).policy);
  }

  /** Put the content of an earlier epoch in force again, as a new one. Throws as above, and POLICY_EPOCH_NOT_FOUND. */
  async rollBackPolicies(
    epoch: number,
    options: { expectedEpoch: number; requestId?: string } & CallTimes,
  ): Promise<PolicySet> {
    const { expectedEpoch } = options;
    const request = RollBackRequest.fromPartial({ requestId: requestIdOf(options.requestId), epoch, expectedEpoch });
    return there((await this.ask(PolicyServiceService.rollBack, request, options)).policy);
  }

  /**
   * Records of one audit chain in its order, or from the newest back; `getAuditCheckpoint` names the chains. Throws
   * AUDIT_CHAIN_NOT_FOUND.
   */
  listAuditRecords(chain: string, filter: AuditFilter = {}): AsyncGenerator<AuditRecord, void> {
    const request = ListRecordsRequest.fromPartial({
      chain,
      newestFirst: filter.newestFirst ?? false,
      complete: filter.complete ?? false,
      startTime: filter.startTime,
      endTime: filter.endTime,
      principal: filter.principal ?? "",
      action: filter.action ?? "",
      outcome: filter.outcome ?? AuditOutcome.UNSPECIFIED,
      namespace: filter.namespace ?? "",
      pageSize: filter.pageSize ?? 0,
    });
    return this.pages(AuditServiceService.listRecords, request, (page) => page.records, filter);
  }

  /** Where every audit chain stands, signed by the orchestrator. */
  async getAuditCheckpoint(times?: CallTimes): Promise<AuditCheckpoint> {
    const request = GetCheckpointRequest.fromPartial({});
    return there((await this.ask(AuditServiceService.getCheckpoint, request, times)).checkpoint);
  }
}
